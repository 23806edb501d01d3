"""The tokenizer of chain arithmetic: 22 tokens (32 modulo 20, 112 modulo 100)."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from pure_rllib.arithmetic.task import STEP_SEPARATOR, ArithmeticTask

PAD_TOKEN = "<pad>"
# The name that Qwen2's tokenizer class adds if the vocabulary lacks it.
EOS_TOKEN = "<|endoftext|>"
# The token at which the PRM is read; policies never write it in SFT data.
PRM_SEPARATOR = "\n"
_SIGNS = "+-=?}"
_WORDS = (STEP_SEPARATOR, PRM_SEPARATOR, "\\boxed{", "now ", "chk ")


def build_tokenizer(task: ArithmeticTask) -> PreTrainedTokenizerBase:
    """Makes the tokenizer of a task.

    A blank line, a newline, `\\boxed{`, `now `, `chk `, each sign and each number below
    the modulus (at least 0 to 9) are one token each. Decoding adds no spaces. Longest
    match: 13 is one token when the modulus is 20, two when it is 10. Other characters
    are left out. See `small_tokenizer`.
    """
    numbers = [str(number) for number in range(max(10, task.modulus))]
    single = [*_SIGNS, *(n for n in numbers if len(n) == 1)]
    words = [*_WORDS, *(n for n in numbers if len(n) > 1)]
    return small_tokenizer(sorted(single), words, padding_side="left")


def small_tokenizer(
    characters: Sequence[str], words: Sequence[str], **kwargs: Any
) -> PreTrainedTokenizerBase:
    """Makes a tokenizer of fixed pieces: padding, end of sequence, then these.

    It is of Qwen2's class because `AutoTokenizer` makes that class of whatever lies
    beside a Qwen2 model. The class keeps its own way of cutting text, so every token
    of more than one character is an added one: these are found before the cut.

    Args:
        characters: a token each.
        words: a token each, of any characters.
        **kwargs: further settings of the tokenizer.

    Returns:
        A tokenizer that `save_pretrained` writes and `AutoTokenizer` reads, with
        `pad_token` and `eos_token` set.
    """
    names = [PAD_TOKEN, EOS_TOKEN, *characters]
    tokenizer = Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[],
        unk_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
        **kwargs,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer
