"""One small tokenizer of each family, trained on a few lines within milliseconds."""

from collections.abc import Callable

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Of Llama 3 and Qwen2.5: newlines stay with the punctuation before them.
_NEWLINES_LAST = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LINES = (
    "Two cups hold 3 each.",
    "So the sum is (2 + 3) * 4 = 20:",
    "Größe π ≤ 中文 問題",
    "Therefore x = 7; it is done!",
)
_TEXTS = [line + end for line in _LINES for end in ("\n\n", "\n", " \n\n", "\r\n\r\n")]
_SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_level(split: str | None, prefix: str = "") -> PreTrainedTokenizerBase:
    """Byte-level BPE with GPT-2's split or another one."""
    backend = Tokenizer(models.BPE())
    cut = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *cut,
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(backend, alphabet)
    if prefix:
        backend.normalizer = normalizers.Prepend(prefix)
    return _wrapped(backend)


def sentencepiece(newline_runs: bool = False) -> PreTrainedTokenizerBase:
    """BPE with byte fallback: as Mistral 0.1, or with runs of newlines as Gemma."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    runs = ["\n" * n for n in range(1, 5)] if newline_runs else []
    letters = sorted({c for text in _TEXTS for c in text if not c.isspace()} | {"▁"})
    words = [*_SPECIAL, *bytes_, *runs, *letters]
    backend = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    replace = normalizers.Replace(" ", "▁")
    strip = []
    if newline_runs:
        backend.normalizer = replace
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        strip = [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *strip,
        ]
    )
    tokenizer = _wrapped(backend)
    tokenizer.add_tokens(runs)
    return tokenizer


def whole_words() -> PreTrainedTokenizerBase:
    """Words only: it can write no newline."""
    words = sorted({word for line in _LINES for word in line.split()})
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrapped(backend)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "gpt2": lambda: byte_level(None),
    "gpt2 with a space in front": lambda: byte_level(None, " "),
    "llama3": lambda: byte_level(_NEWLINES_LAST),
    "mistral": sentencepiece,
    "gemma": lambda: sentencepiece(newline_runs=True),
}
"""Those that can write newlines, by name."""


def _train(backend: Tokenizer, alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 3, trainer)


def _wrapped(backend: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
