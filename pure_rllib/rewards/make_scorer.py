"""From an environment's settings to the step scorer that they name."""

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedTokenizerBase,
)

from pure_rllib.models.loading import policy_config, random_model, resolve_model
from pure_rllib.rewards.base import (
    FunctionScorer,
    ScoringRequest,
    StepScorer,
    counts_of,
)
from pure_rllib.rewards.make_generative import GenerativeLoader
from pure_rllib.rewards.named_object import import_named
from pure_rllib.rewards.prm.checkpoint import default_device, read_checkpoint
from pure_rllib.rewards.prm.formats import FORMATS, format_ids
from pure_rllib.rewards.prm.minimum_scorer import MinimumScorer
from pure_rllib.rewards.prm.model import ProcessRewardModel, make_builder
from pure_rllib.rewards.prm.score_adjustment import ScoreAdjustment

GENERATIVE = "generative"
ScoringFunction = Callable[[str, tuple[str, ...]], Sequence[float]]
PRMSetting = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None


class DeferredScorer:
    """A step scorer that is made when it is first used.

    It keeps a process that only looks at the environment's spaces, such as the driver
    of a distributed run, from loading a PRM.
    """

    def __init__(self, make: Callable[[], StepScorer]):
        self._make = make
        self._scorer: StepScorer | None = None
        self._lock = threading.Lock()

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """See `StepScorer.score`."""
        with self._lock:
            if self._scorer is None:
                self._scorer = self._make()
        return self._scorer.score(requests)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sends on how it is made; what was made stays here."""
        return DeferredScorer, (self._make,)

    @property
    def counts(self) -> Counter[str]:
        """What the scorer has counted so far."""
        return counts_of(self._scorer)

    @property
    def num_overlong(self) -> int:
        """How many responses were over the PRM's context so far."""
        return self.counts["overlong"]


def make_step_scorer(
    prm: PRMSetting,
    prm_kwargs: Mapping[str, Any] | None,
    step_scorer: StepScorer | ScoringFunction | str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> StepScorer | None:
    """Makes the step scorer of an environment; a PRM is loaded when it is first used.

    Args:
        prm: folder, hub id or embedded model, or a Hugging Face config, or None. Of a
            list of these each scores, and the lowest score of a step counts.
        prm_kwargs: further arguments of `ProcessRewardModel.from_pretrained`, or with
            `prm_format` "generative" of `GenerativeLoader`.
        step_scorer: a step scorer, a function from the prompt's text and the texts of
            the steps to one score in [-1, 1] per step, or "module:name" of either.
        tokenizer: the policy's.

    Raises:
        ValueError: the settings contradict each other or do not fit the checkpoint.
        TypeError: an unknown argument in `prm_kwargs`, or no step scorer.
    """
    if prm is None:
        if prm_kwargs:
            raise ValueError(
                f"`prm_kwargs` ({dict(prm_kwargs)}) has no effect without a PRM: set "
                "`prm` to a model folder or drop it."
            )
        return None if step_scorer is None else _given_scorer(step_scorer)
    if step_scorer is not None:
        raise ValueError(
            f"`prm` ({prm}) and `step_scorer` ({step_scorer}) exclude each other, "
            "because each step has one process reward. Drop one of them."
        )
    settings = dict(prm_kwargs or {})
    if isinstance(prm, str | Mapping):
        return _prm_scorer(prm, settings, tokenizer)
    if not prm:
        raise ValueError(
            "`prm` ([]) must name a PRM, because a list without one scores nothing. "
            "Leave it out to train without process rewards."
        )
    return MinimumScorer([_prm_scorer(one, settings, tokenizer) for one in prm])


def _prm_scorer(
    prm: str | Mapping[str, Any],
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> StepScorer:
    """Checks one PRM and makes its scorer."""
    settings = dict(settings)
    if settings.get("prm_format") == GENERATIVE:
        del settings["prm_format"]
        model = prm if isinstance(prm, Mapping) else resolve_model(prm)
        return DeferredScorer(GenerativeLoader(model, tokenizer, **settings))
    # A wrong argument must not wait for the first responses to be found out.
    _check_arguments(settings)
    if isinstance(prm, Mapping):
        return _deferred_random_prm(prm, settings, tokenizer)
    folder = resolve_model(prm)
    _check_prm(folder, settings, tokenizer)
    return DeferredScorer(
        partial(
            ProcessRewardModel.from_pretrained, folder, tokenizer=tokenizer, **settings
        )
    )


def _given_scorer(given: StepScorer | ScoringFunction | str) -> StepScorer:
    scorer: Any = given
    if isinstance(given, str):
        scorer = import_named("step_scorer", given)
    if isinstance(scorer, StepScorer):
        return scorer
    if callable(scorer):
        return FunctionScorer(scorer)
    raise TypeError(
        f"`step_scorer` ({given!r}) must be a step scorer or a function, because steps "
        "are scored by it. Set it to a function of the prompt and the steps' texts."
    )


def _check_arguments(settings: Mapping[str, Any]) -> None:
    """Binds the arguments of `from_pretrained` and of the class behind it."""
    given = inspect.signature(ProcessRewardModel.from_pretrained).bind("", **settings)
    passed_on = given.arguments.get("kwargs", {})
    inspect.signature(ProcessRewardModel).bind(None, None, **passed_on)
    ScoreAdjustment(
        settings.get("label_smoothing", 0.0), settings.get("score_clamp", (-1.0, 1.0))
    )


def _check_prm(
    folder: str, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Checks all that can be known of a PRM without its weights."""
    checkpoint = read_checkpoint(
        folder,
        prm_format=settings.get("prm_format"),
        separator=settings.get("separator"),
        trust_remote_code=settings.get("trust_remote_code", False),
    )
    separator_id, _ = format_ids(
        checkpoint.format, checkpoint.tokenizer, checkpoint.config
    )
    make_builder(
        checkpoint.format,
        checkpoint.tokenizer,
        separator_id=separator_id,
        policy_tokenizer=tokenizer,
        input_format=settings.get("input_format", "pure_rllib"),
        retokenize=settings.get("retokenize", True),
        vocab_size=len(checkpoint.tokenizer),
    )


def _deferred_random_prm(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> DeferredScorer:
    size = policy_config(config).get_text_config().vocab_size
    if size < len(tokenizer):
        raise ValueError(
            f"`prm` (vocab_size {size}) must cover the tokenizer's "
            f"{len(tokenizer)} ids, because sampled ids are passed on as they are. "
            f"Set its vocab_size to {len(tokenizer)} or more."
        )
    return DeferredScorer(partial(_random_prm, config, tokenizer, settings))


def _random_prm(
    config: Mapping[str, Any], tokenizer: Any, settings: Mapping[str, Any]
) -> ProcessRewardModel:
    """Makes a PRM of random weights, for trying out a set-up without a checkpoint."""
    kwargs = dict(settings)
    device = default_device(kwargs.pop("device", None))
    named = kwargs.get("prm_format") or "newline"
    name = named.get("name") if isinstance(named, Mapping) else named
    is_classifier = name not in FORMATS or FORMATS[name].head == "labels"
    model = random_model(
        AutoModelForTokenClassification if is_classifier else AutoModelForCausalLM,
        policy_config({"num_labels": 2, **config} if is_classifier else config),
        seed=0,
    )
    return ProcessRewardModel(model.to(device), tokenizer, **kwargs)
