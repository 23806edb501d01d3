"""From an environment's settings to its step scorer and its verifier."""

import importlib
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

from pure_rllib.data.problems import ListProblems, ProblemSource
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.models.loading import policy_config, random_model, resolve_model
from pure_rllib.rewards.base import (
    AnyVerifier,
    FunctionScorer,
    ScoringRequest,
    StepScorer,
    counts_of,
)
from pure_rllib.rewards.prm.checkpoint import default_device, read_checkpoint
from pure_rllib.rewards.prm.formats import FORMATS, format_ids
from pure_rllib.rewards.prm.generative import GenerativeLoader
from pure_rllib.rewards.prm.model import ProcessRewardModel
from pure_rllib.rewards.prm.rows import make_builder
from pure_rllib.rewards.prm.scoring import MinimumScorer, ScoreAdjustment
from pure_rllib.rewards.reward_model import (
    RewardMap,
    RewardModel,
    check_reward_model,
)
from pure_rllib.rewards.verifier.hybrid import (
    GenerativeOpinion,
    HybridVerifier,
    SecondOpinion,
)
from pure_rllib.rewards.verifier.math_verifier import MathVerifier
from pure_rllib.setting_types import check_setting

VERIFIERS = ("math_verify", "hybrid")
ScoringFunction = Callable[[str, tuple[str, ...]], Sequence[float]]
PRMSetting = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None


class Lazy:
    """A step scorer or a second opinion that is made when it is first used.

    It keeps a process that only looks at the environment's spaces, such as the driver
    of a distributed run, from loading a model. Pickling it sends on how it is made;
    what was made stays here.

    Args:
        make: makes it.
        **known: its attributes that are known before.
    """

    def __init__(self, make: Callable[[], Any], **known: Any):
        self._make, self._known = make, known
        self._made: Any = None
        self._lock = threading.Lock()
        vars(self).update(known)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Lazy, **self._known), (self._make,)

    def _get(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
        return self._made

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        """See `StepScorer.score`."""
        scores: list[np.ndarray] = self._get().score(requests)
        return scores

    def judge_answers(
        self, golds: Sequence[str], answers: Sequence[str]
    ) -> list[bool | None]:
        """See `SecondOpinion.judge_answers`."""
        opinions: list[bool | None] = self._get().judge_answers(golds, answers)
        return opinions

    @property
    def counts(self) -> Counter[str]:
        """What has been counted so far."""
        return counts_of(self._made)


# The name that earlier checkpoints know.
DeferredScorer = Lazy


def make_step_scorer(
    prm: PRMSetting,
    prm_kwargs: Mapping[str, Any] | None,
    step_scorer: StepScorer | ScoringFunction | str | None,
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: PromptTemplate | None = None,
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
        prompt_template: the policy's; see `ProcessRewardModel`.

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
        return _prm_scorer(prm, settings, tokenizer, prompt_template)
    if not prm:
        raise ValueError(
            "`prm` ([]) must name a PRM, because a list without one scores nothing. "
            "Leave it out to train without process rewards."
        )
    return MinimumScorer(
        [_prm_scorer(one, settings, tokenizer, prompt_template) for one in prm]
    )


def _prm_scorer(
    prm: str | Mapping[str, Any],
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: PromptTemplate | None,
) -> StepScorer:
    """Checks one PRM and makes its scorer."""
    if settings.get("prm_format") == "generative":
        settings = {k: v for k, v in settings.items() if k != "prm_format"}
        model = prm if isinstance(prm, Mapping) else resolve_model(prm)
        return Lazy(GenerativeLoader(model, tokenizer, **settings))
    # A wrong argument must not wait for the first responses to be found out.
    _check_arguments(settings)
    if isinstance(prm, Mapping):
        size = policy_config(prm).get_text_config().vocab_size
        if size < len(tokenizer):
            raise ValueError(
                f"`prm` (vocab_size {size}) must cover the tokenizer's "
                f"{len(tokenizer)} ids, because sampled ids are passed on as they are. "
                f"Set its vocab_size to {len(tokenizer)} or more."
            )
        return Lazy(partial(_random_prm, prm, tokenizer, settings))
    settings = {"prompt_template": prompt_template, **settings}
    folder = resolve_model(prm)
    _check_prm(folder, settings, tokenizer)
    return Lazy(
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
        prompt_template=settings["prompt_template"],
    )


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


def make_reward_model(
    reward_model: str | None,
    reward_model_kwargs: Mapping[str, Any] | None,
    prompt_template: PromptTemplate,
) -> StepScorer | None:
    """Makes the reward model of an environment, which is loaded when it is first used.

    Args:
        reward_model: folder, hub id or embedded model, or None.
        reward_model_kwargs: further arguments of `RewardModel.from_pretrained`.
        prompt_template: the policy's.

    Returns:
        What rates a response whose only step is the whole of it; its `map` is known.

    Raises:
        ValueError: it is no reward model, or a setting is wrong or has no effect.
        TypeError: an unknown argument in `reward_model_kwargs`.
    """
    settings = {"prompt_template": prompt_template, **(reward_model_kwargs or {})}
    if reward_model is None:
        if reward_model_kwargs:
            raise ValueError(
                f"`reward_model_kwargs` ({dict(reward_model_kwargs)}) has no effect "
                "without a `reward_model`: set it to a model folder, or drop them."
            )
        return None
    check_setting("reward_model", reward_model, str)
    given = inspect.signature(RewardModel.from_pretrained).bind("", **settings)
    passed_on = given.arguments.get("kwargs", {})
    inspect.signature(RewardModel).bind(None, None, **passed_on)
    check_setting("map", settings.get("map"), RewardMap | None)
    folder, _ = check_reward_model(
        reward_model, trust_remote_code=settings.get("trust_remote_code", False)
    )
    return Lazy(
        partial(RewardModel.from_pretrained, folder, **settings),
        map=settings.get("map"),
    )


def make_verifier(
    verifier: str | AnyVerifier | None,
    verifier_kwargs: Mapping[str, Any] | None,
    problems: Sequence[ProblemSource],
) -> AnyVerifier | None:
    """Makes the verifier that an environment's settings ask for.

    Args:
        verifier: "math_verify", "hybrid", a verifier, or None.
        verifier_kwargs: arguments of `MathVerifier`. For "hybrid" also
            `second_opinion`: a function of gold answer and answer, a `SecondOpinion`,
            "module:name" of either, or the settings of a judging model: those of
            `GenerativeLoader`, with `template` and `min_score` of `GenerativeOpinion`.
        problems: their gold answers are looked at when the verifier is first used.

    Raises:
        ValueError: an unknown name, or a setting that is wrong or has no effect.
    """
    if verifier is None or not isinstance(verifier, str):
        if verifier_kwargs:
            raise ValueError(
                f"`verifier_kwargs` ({dict(verifier_kwargs)}) only has an effect with "
                'a `verifier` given by name: set it to "math_verify", or drop them.'
            )
        return verifier
    if verifier not in VERIFIERS:
        raise ValueError(
            f'`verifier` ("{verifier}") must be one of {VERIFIERS}, None or a verifier.'
        )
    kwargs = dict(verifier_kwargs or {})
    opinion = kwargs.pop("second_opinion", None)
    if (opinion is None) == (verifier == "hybrid"):
        raise ValueError(
            f"`second_opinion` ({opinion!r:.100}) must be given with `verifier` "
            '"hybrid" and only there, because it judges what the rules reject. Set '
            "both, or neither."
        )
    rules = MathVerifier(**kwargs)
    rules.look_at_golds(
        problem.answer
        for source in problems
        # Procedural ones may be endless, and know their answers' form.
        if isinstance(source, ListProblems)
        for problem in source
        if problem.answer is not None
    )
    return rules if opinion is None else HybridVerifier(rules, _opinion(opinion))


def _opinion(given: Any) -> Any:
    if isinstance(given, str):
        return import_named("second_opinion", given)
    if not isinstance(given, Mapping):
        return given
    settings = dict(given)
    if "model" not in settings:
        raise ValueError(
            f"`second_opinion` ({settings}) must name a `model`, which is asked. Set "
            '`verifier_kwargs={"second_opinion": {"model": FOLDER}}`.'
        )
    own = ("template", "min_score")
    asking = {name: settings.pop(name) for name in own if name in settings}
    # Checked now: a slip must not wait for the model.
    asked = GenerativeOpinion(None, None, **asking)  # type: ignore[arg-type]
    loader = GenerativeLoader(settings.pop("model"), None, **settings)

    def load() -> SecondOpinion:
        prm = loader()
        good, bad = prm.question.verdicts
        return GenerativeOpinion(
            prm.judge, prm.tokenizer, verdicts=(good, bad), **asking
        )

    return Lazy(load, template=asked.template, verdicts=loader.question.verdicts)


def import_named(setting: str, name: str) -> Any:
    """Imports what "module:name" names.

    Args:
        setting: that holds the name, for the message.
        name: the module's dotted name, a colon and a name in the module.

    Raises:
        ValueError: the name has another form, or there is nothing of that name.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError(
            f'`{setting}` ("{name}") must be of the form "module:name", because it is '
            'imported. Set it to something like "my_package.my_module:my_function".'
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'`{setting}` ("{name}") must be importable in every process that uses '
            f"it, because it is given by name: {error}. Correct the name, set "
            "PYTHONPATH, or install the package."
        ) from error
