"""Guessing a number by higher and lower: the smallest game of several turns."""

import random
from typing import Any

from transformers import PreTrainedTokenizerBase

from pure_rllib.arithmetic.tokenizer import small_tokenizer
from pure_rllib.envs.text_env import StepResult
from pure_rllib.envs.text_token_env import TextTokenEnv

HIGHEST = 7
NUMBERS = [str(number) for number in range(1, HIGHEST + 1)]


class GuessNumber:
    """Thinks of a number from 1 to 7, and says whether it is lower or higher.

    A turn earns 1.0 if it finds the number or leaves at most half of what is possible,
    0.0 if it leaves more, -1.0 if it is no possible number. Finding it in time is the
    verifiable reward.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Thinks of the seed's number."""
        self.number = random.Random(seed).randint(1, HIGHEST)
        self.low, self.high = 1, HIGHEST
        return "?", {}

    def step(self, action: str) -> StepResult:
        """Answers "<" (it is lower), ">" (higher) or "?" (no possible number)."""
        guess = int(action) if action in NUMBERS else 0
        if not self.low <= guess <= self.high:
            return "?", -1.0, False, False, {"verifiable_reward": 0.0}
        if guess == self.number:
            return "", 1.0, True, False, {"verifiable_reward": 1.0}
        num_possible = self.high - self.low + 1
        left = max(guess - self.low, self.high - guess)
        is_lower = self.number < guess
        if is_lower:
            self.high = guess - 1
        else:
            self.low = guess + 1
        reward = 1.0 if left <= num_possible // 2 else 0.0
        hint = "<" if is_lower else ">"
        return hint, reward, False, False, {"verifiable_reward": 0.0}


def guess_tokenizer() -> PreTrainedTokenizerBase:
    """Makes a tokenizer of 13 tokens: the digits 1 to 7, `<`, `>`, `?` and a newline,
    besides padding and end of sequence.
    """
    return small_tokenizer([*NUMBERS, *"<>?"], ["\n"])


class GuessNumberEnv(TextTokenEnv):
    """Guesses a number from 1 to 7 in three turns of one token; see `GuessNumber`.

    ## Arguments
    Args:
        **kwargs: the arguments of `TextTokenEnv`.
    """

    def __init__(self, **kwargs: Any):
        tokenizer = guess_tokenizer()
        chosen: dict[str, Any] = {
            "turn_rewards": "process",
            "max_turns": 3,
            "max_prompt_tokens": 1,
            "max_response_tokens": 5,
            # A move is one token, whatever it is.
            "eos_token_ids": range(len(tokenizer)),
            **kwargs,
        }
        super().__init__(make_env=GuessNumber, tokenizer=tokenizer, **chosen)
