"""The tokenizer of chain arithmetic: about 23 tokens, exact round trip."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pure_rllib.embedded.task import STEP_SEPARATOR, ArithmeticTask

PAD_TOKEN = "<pad>"
EOS_TOKEN = "<eos>"
# The token at which the PRM is read; policies never write it in SFT data.
PRM_SEPARATOR = "\n"
_WORDS = (STEP_SEPARATOR, PRM_SEPARATOR, "\\boxed{", "now ", "chk ", *"+-=?}")


def build_tokenizer(task: ArithmeticTask) -> PreTrainedTokenizerFast:
    """Makes the tokenizer of a task.

    A blank line, a newline, `\\boxed{`, `now `, `chk `, each sign and each number below
    the modulus (at least 0 to 9) are one token each. Decoding adds no spaces. Longest
    match: 13 is one token when the modulus is 20, two when it is 10.

    Returns:
        A tokenizer that `save_pretrained` writes and `AutoTokenizer` reads, with
        `pad_token` and `eos_token` set. Text of other characters raises an error.
    """
    numbers = [str(number) for number in range(max(10, task.modulus))]
    words = [PAD_TOKEN, EOS_TOKEN, *_WORDS, *numbers]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    pieces = sorted([*_WORDS, *numbers], key=len, reverse=True)
    pattern = "|".join(_escape(piece) for piece in pieces)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tokenizer(task: ArithmeticTask, folder: str | Path) -> None:
    """Writes the tokenizer's files into a model folder."""
    build_tokenizer(task).save_pretrained(folder)


def _escape(piece: str) -> str:
    return "".join(char if char.isalnum() else _escaped(char) for char in piece)


def _escaped(char: str) -> str:
    return {"\n": r"\n", " ": " "}.get(char, "\\" + char)
