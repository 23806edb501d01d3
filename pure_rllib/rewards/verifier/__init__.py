"""Whether a response's answer is right: kinds of answers, Math-Verify, a model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pure_rllib.rewards.verifier.math_verifier import MathVerifier as MathVerifier


def __getattr__(name: str) -> Any:
    # Earlier checkpoints look here; its workers, which start light, need not load it.
    if name == "MathVerifier":
        from pure_rllib.rewards.verifier.math_verifier import MathVerifier

        return MathVerifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
