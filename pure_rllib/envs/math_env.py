"""Mathematics problems with a process reward model and Math-Verify."""

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from pure_rllib.credit.steps import single_token_id
from pure_rllib.data.problems import ProblemSource, load_problems
from pure_rllib.data.prompts import PromptTemplate, drop_long_prompts, make_template
from pure_rllib.embedded.cache import resolve_model
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.generation.load_policy import policy_config, random_model
from pure_rllib.generation.model_files import check_model_folder
from pure_rllib.rewards.base import ScoringRequest, StepScorer, Verifier
from pure_rllib.rewards.process_reward import ProcessRewardModel, check_same_vocabulary
from pure_rllib.rewards.verifier import MathVerifier


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

    @property
    def num_overlong(self) -> int:
        """How many responses were over the PRM's context so far."""
        return getattr(self._scorer, "num_overlong", 0)


class MathEnv(TokenEnv):
    """Answers mathematics problems; a `TokenEnv` whose parts are named in settings.

    Spaces, rewards and episodes are those of `TokenEnv`.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        problems: file, folder or hub id, or a dict of `load_problems`' arguments (field
            names, `answer_fraction`, ...), or a problem source (taken as it is).
        eval_problems: the same for held-out problems, or None.
        prm: folder or hub id of a process reward model, or a Hugging Face config (with
            `model_type`) of one with random weights, or None.
        prm_kwargs: further arguments of `ProcessRewardModel.from_pretrained`.
        step_scorer: a step scorer to be used in place of a PRM.
        verifier: "math_verify", a verifier, or None.
        verifier_kwargs: further arguments of `MathVerifier`.
        prompt_template: name, text or fields of a prompt template.
        max_prompt_tokens: longer prompts are dropped and counted.
        **kwargs: the other arguments of `TokenEnv`.

    Raises:
        ValueError: a file is missing or holds no problem, the PRM's vocabulary is not
            the policy's, or both `prm` and `step_scorer` are given.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        problems: str | Mapping[str, Any] | ProblemSource,
        eval_problems: str | Mapping[str, Any] | ProblemSource | None = None,
        prm: str | Mapping[str, Any] | None = None,
        prm_kwargs: Mapping[str, Any] | None = None,
        step_scorer: StepScorer | None = None,
        verifier: str | Verifier | None = "math_verify",
        verifier_kwargs: Mapping[str, Any] | None = None,
        prompt_template: PromptTemplate | Mapping[str, Any] | str = "pure",
        max_prompt_tokens: int = 1024,
        **kwargs: Any,
    ):
        if isinstance(tokenizer, str):
            tokenizer = _load_tokenizer(tokenizer)
        template = make_template(prompt_template)
        encode = partial(template.encode_batch, tokenizer=tokenizer)
        train, num_dropped = _problems(problems, encode, max_prompt_tokens)
        held_out, num_dropped_held_out = (
            (None, 0)
            if eval_problems is None
            else _problems(eval_problems, encode, max_prompt_tokens)
        )
        self.num_dropped_prompts = num_dropped + num_dropped_held_out
        super().__init__(
            problems=train,
            eval_problems=held_out,
            tokenizer=tokenizer,
            step_scorer=step_scorer,
            verifier=_verifier(verifier, verifier_kwargs),
            prompt_template=template,
            max_prompt_tokens=max_prompt_tokens,
            **kwargs,
        )
        # Last, because an embedded PRM is trained on first use: a slip in another
        # setting must not wait for that.
        self.judge.step_scorer = _step_scorer(prm, prm_kwargs, step_scorer, tokenizer)


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(resolve_model(name))
    except OSError as error:
        raise ValueError(
            f"`tokenizer` ({name}) must be a folder with a tokenizer's files or the id "
            f"of one on the hub, because prompts are encoded with it: {error}. Set it "
            "to the policy's folder."
        ) from error


def _problems(
    source: str | Mapping[str, Any] | ProblemSource,
    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    max_prompt_tokens: int,
) -> tuple[ProblemSource, int]:
    """Loads problems; returns those with prompts short enough, and how many had not."""
    if isinstance(source, str):
        source = load_problems(source)
    elif isinstance(source, Mapping):
        source = load_problems(**source)
    else:
        # May be procedural and endless for all practical purposes: not gone through.
        return source, 0
    return drop_long_prompts(source, encode, max_prompt_tokens)


def _step_scorer(
    prm: str | Mapping[str, Any] | None,
    prm_kwargs: Mapping[str, Any] | None,
    step_scorer: StepScorer | None,
    tokenizer: PreTrainedTokenizerBase,
) -> StepScorer | None:
    if prm is None:
        if prm_kwargs:
            raise ValueError(
                f"`prm_kwargs` ({dict(prm_kwargs)}) has no effect without a PRM: set "
                "`prm` to a model folder or drop it."
            )
        return step_scorer
    if step_scorer is not None:
        raise ValueError(
            f"`prm` ({prm}) and `step_scorer` ({step_scorer}) exclude each other, "
            "because each step has one process reward. Drop one of them."
        )
    settings = {"device": _default_device(), **(prm_kwargs or {})}
    if isinstance(prm, Mapping):
        size = policy_config(prm).get_text_config().vocab_size
        if size < len(tokenizer):
            raise ValueError(
                f"`prm` (vocab_size {size}) must cover the tokenizer's "
                f"{len(tokenizer)} ids, because sampled ids are passed on as they are. "
                f"Set its vocab_size to {len(tokenizer)} or more."
            )
        return DeferredScorer(partial(_random_prm, prm, tokenizer, settings))
    # A wrong argument must not wait for the first responses to be found out.
    inspect.signature(ProcessRewardModel.from_pretrained).bind(prm, **settings)
    folder = resolve_model(prm)
    files = check_model_folder(folder, setting="prm")
    if files.num_labels not in (None, 2):
        raise ValueError(
            f"`prm` ({prm}) must have 2 labels, because a step's score is p(good) - "
            f"p(bad); it has {files.num_labels}. Use a token classifier with two."
        )
    single_token_id(tokenizer, settings.get("separator", "\n"))
    check_same_vocabulary(tokenizer, AutoTokenizer.from_pretrained(folder))
    return DeferredScorer(
        partial(
            ProcessRewardModel.from_pretrained, folder, tokenizer=tokenizer, **settings
        )
    )


def _random_prm(
    config: Mapping[str, Any], tokenizer: Any, settings: Mapping[str, Any]
) -> ProcessRewardModel:
    """Makes a PRM of random weights, for trying out a set-up without a checkpoint."""
    kwargs = dict(settings)
    device = kwargs.pop("device")
    model = random_model(
        AutoModelForTokenClassification,
        policy_config({"num_labels": 2, **config}),
        seed=0,
    )
    return ProcessRewardModel(model.to(device), tokenizer, **kwargs)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _verifier(
    verifier: str | Verifier | None, verifier_kwargs: Mapping[str, Any] | None
) -> Verifier | None:
    if isinstance(verifier, str):
        if verifier != "math_verify":
            raise ValueError(
                f'`verifier` ("{verifier}") must be "math_verify", None or a verifier.'
            )
        return MathVerifier(**(verifier_kwargs or {}))
    if verifier_kwargs:
        raise ValueError(
            f"`verifier_kwargs` ({dict(verifier_kwargs)}) only has an effect with "
            '`verifier="math_verify"`: drop it or change `verifier`.'
        )
    return verifier
