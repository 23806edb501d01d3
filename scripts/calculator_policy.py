r"""Makes a start policy for the calculator: small, and badly taught.

    python -m scripts.calculator_policy FOLDER

The folder gets the weights and the tokenizer that `calculator` trains. The teacher of
its SFT answers most problems at once, with a number out of a hat, and where it calls
the calculator it often gets a digit of the call or of the result wrong. So the policy
knows the forms, and RL has to find out what they are for.
"""

import random
from collections.abc import Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pure_rllib.arithmetic.traces import IGNORED
from pure_rllib.envs.calculator import calculator_tokenizer
from scripts.embedded_models.training import make_folder, teach

UPDATES, BATCH_SIZE = 1500, 32
AT_ONCE, WRONG_DIGIT = 0.6, 0.4


def conversation(rng: random.Random) -> list[tuple[str, bool]]:
    """Returns texts in their order, and which of them the teacher writes."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    asked = f"{a}*{b}"
    if rng.random() < AT_ONCE:
        guess = rng.randint(100, 9801)
        return [(f"{asked}=?", False), (f"\\boxed{{{guess}}}", True)]
    call = _copied(asked, rng)
    first, second = call.split("*")
    result = str(int(first) * int(second))
    return [
        (f"{asked}=?", False),
        (f"calc({call})", True),
        (result, False),
        (f"\\boxed{{{_copied(result, rng)}}}", True),
    ]


def _copied(text: str, rng: random.Random) -> str:
    """A text, now and then with another first or last digit."""
    if rng.random() >= WRONG_DIGIT:
        return text
    place = rng.choice([0, len(text) - 1])
    digit = rng.choice([d for d in "123456789" if d != text[place]])
    return text[:place] + digit + text[place + 1 :]


def _rows(
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields ids, and what is learned of them."""
    rng = random.Random("calculator policy")
    while True:
        ids: list[int] = []
        learned: list[int] = []
        for text, is_written in conversation(rng):
            new = tokenizer(text)["input_ids"]
            new = [*new, tokenizer.eos_token_id] if is_written else new
            ids += new
            learned += new if is_written else [IGNORED] * len(new)
        yield ids, learned


def make() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Makes the policy and its tokenizer."""
    tokenizer = calculator_tokenizer()
    return teach(tokenizer, _rows(tokenizer), UPDATES, BATCH_SIZE), tokenizer


if __name__ == "__main__":
    make_folder(__doc__, make)
