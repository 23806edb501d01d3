"""Solving a problem as a Markov decision process whose actions are tokens."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from transformers import PreTrainedTokenizerBase

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.problems import Problem, ProblemSource
from pure_rllib.data.prompts import PromptTemplate, make_template
from pure_rllib.envs.vector import BLANK_RESPONSE_REWARD, ResponseJudge
from pure_rllib.models.ends import added_eos_ids, eos_ids, is_ended, pad_id
from pure_rllib.models.stop_strings import StopStrings
from pure_rllib.rewards.base import AnyVerifier, StepScorer
from pure_rllib.setting_types import Count, check_setting


class TokenEnv(gym.Env[dict[str, np.ndarray], int]):
    r"""Answers one problem per episode, one token per action.

    An environment is made by composition: a problem source, a step scorer and a
    verifier. `MathEnv` and `ArithmeticEnv` are this class with parts chosen for them.

    ## Action Space
    `Discrete(vocab_size)`: the id of the next token.

    ## Observation Space
    `Dict(input_ids, attention_mask)`, each `[max_prompt_tokens + max_response_tokens]`
    int64: the prompt, the response so far, then padding. The names are those of
    Hugging Face models, so that with a batch axis a policy is `model(**observation)`.

    ## Starting State
    The prompt of a problem drawn with the environment's random number generator, or
    of the one given by `reset(options={"problem": ...})` (a `Problem` or its text).
    `reset(options={"split": "eval"})` draws from the evaluation problems.

    ## Reward
    At the last token of a reasoning step, the step's process reward in [-1, 1]; 0.0 at
    every other token. A step ends at the token that completes a blank line of the text,
    or at the response's last token. A stretch without a visible character is no step
    and earns nothing; a response without any earns -1.0 at its end.

    ## Episode End
    Terminated after an end-of-sequence token, or the token that completes a stop string
    (see `set_stop`); truncated when `max_response_tokens` are written.

    ## Information
    `prompt_ids` (a tuple: Gymnasium's vector environments stack arrays, and prompts
    differ in length) and `problem_id` at reset. At every step `is_boundary`, and where
    it is True `step_span`, the half-open token range of the step that ended. At the end
    `response_text`, `verifiable_reward` (in [0, 1], or None without a gold answer) and
    `outcome` (the verifier's); with a reward model
    `model_reward`.

    ## Arguments
    Args:
        problems: where training problems come from; at least one.
        tokenizer: of the policy.
        step_scorer: gives process rewards; None makes them all 0.0. It must be causal:
            a step's score may depend on the prompt and the steps before, not on later
            ones.
        verifier: gives the verifiable reward; None gives none.
        eval_problems: held-out problems, or None.
        prompt_template: a `PromptTemplate`, or name, text or fields of one.
        max_prompt_tokens: prompts are at most this long; >= 1.
        max_response_tokens: the token budget of a response; >= 1.
        eos_token_ids: ids that end a response; default: the tokenizer's, and those in
            `config.json` and `generation_config.json` of its folder and the policy's.
        vocab_size: size of the action space; default: the tokenizer's length.
        render_mode: None or "ansi".

    Raises:
        ValueError: the tokenizer has no token with a newline, or no end-of-sequence
            token; there is no problem; or a limit is below 1.
    """

    # Gymnasium's own form, frames per second included: it warns without.
    metadata = {"render_modes": ["ansi"], "render_fps": 30}  # noqa: RUF012
    default_policy: str | None = None
    """The model that a policy for this environment starts from, where there is one."""
    step_checker: StepScorer | None = None
    """What knows exactly which steps are right, where there is such a thing."""
    prms: tuple[str, ...] = ()
    """Names of the process reward models that give the process rewards."""

    def __init__(
        self,
        *,
        problems: ProblemSource,
        tokenizer: PreTrainedTokenizerBase,
        step_scorer: StepScorer | None = None,
        verifier: AnyVerifier | None = None,
        eval_problems: ProblemSource | None = None,
        prompt_template: PromptTemplate | Mapping[str, Any] | str = "plain",
        max_prompt_tokens: int = 512,
        max_response_tokens: int = 512,
        eos_token_ids: Collection[int] | None = None,
        vocab_size: int | None = None,
        render_mode: str | None = None,
    ):
        check_setting("max_prompt_tokens", max_prompt_tokens, Count)
        check_setting("max_response_tokens", max_response_tokens, Count)
        if len(problems) == 0:
            raise ValueError("`problems` (0 of them) must hold at least one problem.")
        if render_mode not in (None, "ansi"):
            raise ValueError(f'`render_mode` ("{render_mode}") must be None or "ansi".')
        self.problems = problems
        self.eval_problems = eval_problems
        self.tokenizer = tokenizer
        self.prompt_template = make_template(prompt_template)
        self.prompt_template.check(tokenizer)
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.stop: StopStrings | None = None
        self._has_own_eos_ids = eos_token_ids is not None
        self.eos_token_ids = eos_ids(tokenizer, eos_token_ids)
        self.render_mode = render_mode
        self.judge = ResponseJudge(
            tokenizer, StepSplitter.from_tokenizer(tokenizer), step_scorer, verifier
        )
        self.set_vocab_size(len(tokenizer) if vocab_size is None else vocab_size)
        self.pad_token_id = pad_id(tokenizer, self.eos_token_ids)
        self._problem: Problem | None = None
        self._prompt = np.zeros(0, np.int64)
        self._response: list[int] = []
        self._spans: list[tuple[int, int]] = []
        self._scores: list[float] = []
        self._done = False

    def set_vocab_size(self, vocab_size: int) -> None:
        """Makes room for a policy with more ids than the tokenizer has.

        Many models pad their vocabulary. The ids beyond the tokenizer's have no text:
        sampling one is a fault of the policy like any other, and not an error.

        Args:
            vocab_size: size of the action space, >= the tokenizer's length.

        Raises:
            ValueError: it is smaller.
        """
        if vocab_size < len(self.tokenizer):
            raise ValueError(
                f"`vocab_size` ({vocab_size}) must be >= {len(self.tokenizer)}, "
                "because prompts may hold any of the tokenizer's ids. Leave it out for "
                "the tokenizer's own size."
            )
        self.vocab_size = vocab_size
        self.set_stop(self.stop.stop if self.stop else ())
        max_tokens = self.max_prompt_tokens + self.max_response_tokens
        self.action_space: spaces.Discrete = spaces.Discrete(vocab_size)
        self.observation_space: spaces.Dict = spaces.Dict(
            input_ids=spaces.Box(0, vocab_size - 1, (max_tokens,), np.int64),
            attention_mask=spaces.Box(0, 1, (max_tokens,), np.int64),
        )

    def add_eos_ids_of(self, model: str | Mapping[str, Any]) -> None:
        """Lets responses end where a policy's own files say so, too.

        An id counts if it is one of the tokenizer's added tokens; without effect where
        `eos_token_ids` were given.

        Args:
            model: folder, hub id or config of the policy.
        """
        if not self._has_own_eos_ids:
            self.eos_token_ids |= added_eos_ids(model, self.tokenizer)

    def set_stop(self, stop: Sequence[str]) -> None:
        """Sets the strings that end a response, too; see `StopStrings`.

        Raises:
            ValueError: the tokenizer's tokens cannot write one of them.
        """
        self.stop = None
        splitter = StepSplitter.from_tokenizer(self.tokenizer, self.vocab_size)
        if stop:
            self.stop = StopStrings(self.tokenizer, stop, self.vocab_size)
            splitter = splitter.ending_with(self.stop.begins_at)
        self.judge.splitter = splitter

    def is_ended(self, response_ids: Sequence[int]) -> bool:
        """Tells whether the last of `[T]` ids ends a response, as no earlier one."""
        ids = np.asarray(response_ids, dtype=np.int64)
        return is_ended(ids, self.eos_token_ids, self.stop)

    @property
    def splitter(self) -> StepSplitter:
        """Where steps end."""
        return self.judge.splitter

    @property
    def has_process_rewards(self) -> bool:
        """Whether steps earn anything."""
        return self.judge.step_scorer is not None

    @property
    def has_verifiable_rewards(self) -> bool:
        """Whether whole responses are judged."""
        return self.judge.verifier is not None

    def encode_prompt(self, problem: Problem) -> np.ndarray:
        """Returns the `[P]` int64 prompt ids of a problem. See `encode_prompts`."""
        return self.encode_prompts([problem])[0]

    def encode_prompts(self, problems: Sequence[Problem]) -> list[np.ndarray]:
        """Returns the `[P]` int64 prompt ids of each problem.

        Raises:
            ValueError: a prompt is longer than `max_prompt_tokens`.
        """
        prompts = self.prompt_template.encode_batch(problems, self.tokenizer)
        for problem, ids in zip(problems, prompts, strict=True):
            if not 1 <= len(ids) <= self.max_prompt_tokens:
                raise ValueError(
                    f"The prompt of problem `{problem.problem_id}` has {len(ids)} "
                    f"tokens; it must have 1 to `max_prompt_tokens` "
                    f"({self.max_prompt_tokens}). Raise the limit, or drop such "
                    "problems with `drop_long_prompts`."
                )
        return [np.asarray(ids, dtype=np.int64) for ids in prompts]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts the next episode. See the class for `options`."""
        super().reset(seed=seed)
        self._problem = self._choose_problem(options or {})
        self._prompt = self.encode_prompt(self._problem)
        self._response, self._spans, self._scores = [], [], []
        self._done = False
        info = {
            "prompt_ids": tuple(self._prompt.tolist()),
            "problem_id": self._problem.problem_id,
        }
        return self._observation(), info

    def step(
        self, action: int
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Appends one token. See the class for rewards and information."""
        self._check_action(action)
        self._response.append(int(action))
        terminated = self.is_ended(self._response)
        truncated = not terminated and len(self._response) >= self.max_response_tokens
        self._done = terminated or truncated
        reward, info = self._end_step_if_due()
        if self._done:
            info |= self._final_info()
        return self._observation(), reward, terminated, truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        """Returns the prompt and the steps so far, each with its process reward."""
        if self.render_mode != "ansi" or self._problem is None:
            return None
        response = np.asarray(self._response, dtype=np.int64)
        spans = np.asarray(self._spans, dtype=np.int64).reshape(-1, 2)
        texts = self.judge.step_texts(response, spans)
        lines = [f"prompt  {self._problem.prompt}"]
        lines += [
            f"{score:+.2f}   {text}"
            for score, text in zip(self._scores, texts, strict=True)
        ]
        tail = response[self._step_start() :]
        if len(tail):
            lines.append(f"...     {self.tokenizer.decode(tail.tolist()).strip()}")
        return "\n".join(lines)

    def close(self) -> None:
        """Releases what the verifier and the step scorer hold, such as processes."""
        for part in (self.judge.verifier, self.judge.step_scorer):
            close = getattr(part, "close", None)
            if close is not None:
                close()

    def _check_action(self, action: int) -> None:
        if self._problem is None or self._done:
            raise RuntimeError("The episode has ended: call `reset()` before `step()`.")
        if not 0 <= action < self.vocab_size:
            raise ValueError(
                f"`action` ({action}) must be in [0, {self.vocab_size}), because it is "
                "a token's id."
            )

    def _choose_problem(self, options: dict[str, Any]) -> Problem:
        unknown = set(options) - {"problem", "split"}
        if unknown:
            raise ValueError(
                f"`options` has unknown keys {sorted(unknown)}; it may hold `problem` "
                "and `split`."
            )
        if "problem" in options:
            problem = options["problem"]
            return problem if isinstance(problem, Problem) else Problem(str(problem))
        split = options.get("split", "train")
        if split not in ("train", "eval"):
            raise ValueError(f'`split` ({split!r}) must be "train" or "eval".')
        source = self.problems if split == "train" else self.eval_problems
        if source is None:
            raise ValueError('`split` ("eval") needs `eval_problems`; none were given.')
        return source[int(self.np_random.integers(len(source)))]

    def _step_start(self) -> int:
        return self._spans[-1][1] if self._spans else 0

    def _end_step_if_due(self) -> tuple[float, dict[str, Any]]:
        """Closes the current step if this token ends it, as the splitter does."""
        response = np.asarray(self._response, dtype=np.int64)
        spans = self.splitter.step_spans(response, is_over=self._done)
        if len(spans) == len(self._scores):
            return 0.0, {"is_boundary": False}
        self._spans = [(start, end) for start, end in spans.tolist()]
        is_blank_response = not self.splitter.has_visible(response)
        if is_blank_response:
            score = BLANK_RESPONSE_REWARD if self.judge.step_scorer else 0.0
        else:
            assert self._problem is not None
            score = float(
                self.judge.score_steps(self._problem, self._prompt, response, spans)[-1]
            )
        self._scores.append(score)
        return score, {"is_boundary": True, "step_span": self._spans[-1]}

    def _final_info(self) -> dict[str, Any]:
        assert self._problem is not None
        text = self.tokenizer.decode(
            self._response, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        verdict = self.judge.verify_one(self._problem, text)
        response = np.asarray(self._response, dtype=np.int64)
        (rating,) = self.judge.rate([self._problem], [self._prompt], [response], [text])
        rated = {} if rating is None else {"model_reward": rating}
        return rated | {
            "response_text": text,
            "verifiable_reward": None if verdict is None else verdict.reward,
            "outcome": None if verdict is None else verdict.outcome,
        }

    def _observation(self) -> dict[str, np.ndarray]:
        size = self.max_prompt_tokens + self.max_response_tokens
        input_ids = np.full(size, self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros(size, dtype=np.int64)
        tokens = np.concatenate([self._prompt, np.asarray(self._response, np.int64)])
        input_ids[: len(tokens)] = tokens
        attention_mask[: len(tokens)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}
