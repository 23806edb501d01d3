"""What callbacks remember, for checkpoints; RLlib's hold nothing of them."""

from typing import Any

from ray.rllib.utils import force_list


def callback_states(callbacks: Any) -> dict[str, Any]:
    """Returns the states of callbacks with `get_state` and `set_state`, by class name.

    Args:
        callbacks: an algorithm's: one, or a list.
    """
    return {
        type(callback).__name__: callback.get_state()
        for callback in force_list(callbacks)
        if hasattr(callback, "get_state")
    }


def set_callback_states(callbacks: Any, states: dict[str, Any]) -> None:
    """Gives callbacks back what they remembered; without a state they stay as is."""
    for callback in force_list(callbacks):
        if type(callback).__name__ in states:
            callback.set_state(states[type(callback).__name__])
