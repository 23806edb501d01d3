"""Multiplying with a tool: a call in one turn, its result copied in the next."""

import random
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.arithmetic.tokenizer import small_tokenizer
from pure_rllib.envs.text_env import StepResult
from pure_rllib.envs.text_token_env import TextTokenEnv

_CALL = re.compile(r"calc\((\d{1,9})\*(\d{1,9})\)", re.ASCII)
_ANSWER = re.compile(r"\\boxed\{(\d{1,18})\}", re.ASCII)


class Calculator:
    r"""Asks for a product of two numbers from 10 to 99, as `37*48=?`.

    A turn `calc(A*B)` calls the calculator, once, which says the product, or `error` to
    a call that it cannot read. Any other turn, and the second, is the answer,
    `\boxed{C}`. A call earns 1.0 if it is the one asked for, and so does the right
    answer; everything else earns -1.0. The right answer is the verifiable reward.

    Args:
        noise: the calculator says a number out of a hat, from which nothing can be
            learned.
    """

    def __init__(self, noise: bool = False):
        self.noise = noise

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Asks for the seed's product."""
        self.rng = random.Random(seed)
        self.asked = (self.rng.randint(10, 99), self.rng.randint(10, 99))
        self.num_calls = 0
        return "{}*{}=?".format(*self.asked), {}

    def step(self, action: str) -> StepResult:
        """Calculates, or judges the answer."""
        if self.num_calls == 0 and action.startswith("calc("):
            self.num_calls += 1
            return self._calculate(_CALL.fullmatch(action))
        answer = _ANSWER.fullmatch(action)
        product = self.asked[0] * self.asked[1]
        is_right = answer is not None and int(answer[1]) == product
        info = self._info(float(is_right))
        if answer is None:
            info["outcome"] = "no_answer"
        return "", 1.0 if is_right else -1.0, True, False, info

    def _calculate(self, call: re.Match[str] | None) -> StepResult:
        if call is None:
            return "error", -1.0, False, False, self._info(0.0)
        a, b = int(call[1]), int(call[2])
        said = self.rng.randint(100, 9801) if self.noise else a * b
        reward = 1.0 if (a, b) == self.asked else -1.0
        return str(said), reward, False, False, self._info(0.0)

    def _info(self, reward: float) -> dict[str, Any]:
        return {"verifiable_reward": reward, "parts": {"calls": self.num_calls}}


def calculator_tokenizer() -> PreTrainedTokenizerBase:
    """Makes a tokenizer of 22 tokens: the digits, one token for each fixed piece of a
    turn, and padding and end of sequence.
    """
    words = ("\n", "calc(", "\\boxed{", "error")
    return small_tokenizer([*"0123456789*=?)}"], words)


class CalculatorEnv(TextTokenEnv):
    """Multiplies two numbers with a calculator in two turns; see `Calculator`.

    ## Arguments
    Args:
        noise: see `Calculator`.
        **kwargs: the arguments of `TextTokenEnv`.
    """

    def __init__(self, *, noise: bool = False, **kwargs: Any):
        chosen: dict[str, Any] = {
            "turn_rewards": "process",
            "max_turns": 2,
            "max_turn_tokens": 10,
            "max_prompt_tokens": 8,
            "max_response_tokens": 32,
            **kwargs,
        }
        super().__init__(
            make_env=lambda: Calculator(noise),
            tokenizer=calculator_tokenizer(),
            **chosen,
        )
