"""Mathematics problems with a process reward model and Math-Verify."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.data.problems import (
    ListProblems,
    Problem,
    ProblemSource,
    load_problems,
)
from pure_rllib.data.prompts import PromptTemplate, drop_long_prompts, make_template
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.envs.tokenizers import load_tokenizer
from pure_rllib.rewards.base import AnyVerifier, StepScorer
from pure_rllib.rewards.make import (
    PRMSetting,
    ScoringFunction,
    make_reward_model,
    make_step_scorer,
    make_verifier,
)


class MathEnv(TokenEnv):
    """Answers mathematics problems; a `TokenEnv` whose parts are named in settings.

    Spaces, rewards and episodes are those of `TokenEnv`.

    ## Arguments
    Args:
        tokenizer: folder or hub id of the policy's tokenizer, or the tokenizer.
        problems: file, folder or hub id, or a dict of `load_problems`' arguments (field
            names, `answer_fraction`, ...), or a list of `Problem`s, or a problem
            source (taken as it is).
        eval_problems: the same for held-out problems, or None.
        prm: folder or hub id of a process reward model, or a Hugging Face config (with
            `model_type`) of one with random weights, or None. Of a list of these the
            lowest score of each step counts.
        prm_kwargs: further arguments of `ProcessRewardModel.from_pretrained`, or with
            `prm_format` "generative" of `GenerativeLoader`.
        step_scorer: used in place of a PRM: a step scorer, a function from the prompt's
            text and the texts of the steps to one score in [-1, 1] per step, or
            "module:name" of either.
        reward_model: folder or hub id of a sequence classifier with one label, which
            rates whole responses; its number is the reward in place of the verifier's,
            whose verdicts are still measured where there are gold answers.
        reward_model_kwargs: further arguments of `RewardModel.from_pretrained`.
        verifier: "math_verify", "hybrid", a verifier, or None.
        verifier_kwargs: further arguments of `MathVerifier`; for "hybrid" also
            `second_opinion`, see `make_verifier`.
        prompt_template: name, text or fields of a prompt template, see
            `make_template`.
        max_prompt_tokens: longer prompts are dropped and counted.
        **kwargs: the other arguments of `TokenEnv`.

    Raises:
        ValueError: a file is missing or holds no problem, the PRM's format does not fit
            its checkpoint, or both `prm` and `step_scorer` are given.
    """

    def __init__(
        self,
        *,
        tokenizer: str | PreTrainedTokenizerBase,
        problems: str | Mapping[str, Any] | list[Problem] | ProblemSource,
        eval_problems: str
        | Mapping[str, Any]
        | list[Problem]
        | ProblemSource
        | None = None,
        prm: PRMSetting = None,
        prm_kwargs: Mapping[str, Any] | None = None,
        step_scorer: StepScorer | ScoringFunction | str | None = None,
        reward_model: str | None = None,
        reward_model_kwargs: Mapping[str, Any] | None = None,
        verifier: str | AnyVerifier | None = "math_verify",
        verifier_kwargs: Mapping[str, Any] | None = None,
        prompt_template: PromptTemplate | Mapping[str, Any] | str = "qwen2_5_math",
        max_prompt_tokens: int = 1024,
        **kwargs: Any,
    ):
        tokenizer = load_tokenizer(tokenizer)
        template = make_template(prompt_template)
        encode = partial(template.encode_batch, tokenizer=tokenizer)
        train, num_dropped = read_problems(problems, encode, max_prompt_tokens)
        held_out, num_dropped_held_out = (
            (None, 0)
            if eval_problems is None
            else read_problems(eval_problems, encode, max_prompt_tokens)
        )
        self.num_dropped_prompts = num_dropped + num_dropped_held_out
        sources = [train] if held_out is None else [train, held_out]
        if reward_model is not None and not any(s.num_answers for s in sources):
            verifier = verifier_kwargs = None  # no answers: there is no accuracy
        super().__init__(
            problems=train,
            eval_problems=held_out,
            tokenizer=tokenizer,
            verifier=make_verifier(verifier, verifier_kwargs, sources),
            prompt_template=template,
            max_prompt_tokens=max_prompt_tokens,
            **kwargs,
        )
        # Last: a slip in another setting is found before a PRM's files are read.
        self.judge.step_scorer = make_step_scorer(
            prm, prm_kwargs, step_scorer, tokenizer, template
        )
        self.judge.reward_model = make_reward_model(
            reward_model, reward_model_kwargs, template
        )
        several = [prm] if isinstance(prm, str | Mapping) else prm or ()
        self.prms = tuple(one for one in several if isinstance(one, str))


def read_problems(
    source: str | Mapping[str, Any] | list[Problem] | ProblemSource,
    encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]],
    max_prompt_tokens: int,
) -> tuple[ProblemSource, int]:
    """Loads problems; returns those with prompts short enough, and how many had not."""
    if isinstance(source, str):
        loaded = load_problems(source)
    elif isinstance(source, Mapping):
        loaded = load_problems(**source)
    elif isinstance(source, list):
        wrong = [type(one).__name__ for one in source if not isinstance(one, Problem)]
        if wrong:
            raise ValueError(
                f"`problems` (a list with a {wrong[0]}) must hold `Problem`s only, "
                "because rows have their fields looked for in files. Set it to "
                "[Problem(text, answer), ...], or to a file of these rows."
            )
        loaded = ListProblems(source)
    else:
        # May be procedural and endless for all practical purposes: not gone through.
        return source, 0
    return drop_long_prompts(loaded, encode, max_prompt_tokens)
