"""Where steps end: hand-drawn rulers, then the vectorised form against a loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pure_rllib.credit.steps import (
    StepSplitter,
    single_token_id,
    step_lengths,
)

TEXTS = ("<pad>", "<eos>", "\n", "\n\n", ".\n\n", " ", "a", "b", "\n\nSo", "\u200b\n\n")
PAD, EOS, NEWLINE, BLANK, DOT, SPACE, A, B, SO, ZERO_WIDTH = range(10)


class ListTokenizer:
    """A tokenizer whose vocabulary is a list of texts; the first two are special."""

    all_special_ids = (PAD, EOS)

    def __init__(self, texts=TEXTS):
        self.texts = list(texts)

    def __len__(self):
        return len(self.texts)

    def batch_decode(self, ids, **_):
        return ["".join(self.texts[i] for i in row) for row in ids]

    def encode(self, text, add_special_tokens=True):
        return [i for i, known in enumerate(self.texts) if known == text]


@pytest.fixture(scope="module")
def splitter():
    return StepSplitter.from_tokenizer(ListTokenizer())


def test_tables(splitter):
    assert np.flatnonzero(splitter.is_separator).tolist() == [BLANK, DOT, ZERO_WIDTH]
    assert np.flatnonzero(splitter.is_visible).tolist() == [DOT, A, B, SO]


# The second list is the spans when blank steps are merged, the third when kept.
CASES = {
    "one step": ([A, B, EOS], [(0, 3)], [(0, 3)]),
    "two steps": ([A, DOT, B, EOS], [(0, 2), (2, 4)], [(0, 2), (2, 4)]),
    "truncated": ([A, DOT, B], [(0, 2), (2, 3)], [(0, 2), (2, 3)]),
    "truncated on a separator": ([A, DOT], [(0, 2)], [(0, 2)]),
    "separator, then EOS": ([A, DOT, EOS], [(0, 2)], [(0, 2), (2, 3)]),
    "blank in the middle": (
        [A, BLANK, BLANK, B, EOS],
        [(0, 2), (2, 5)],
        [(0, 2), (2, 3), (3, 5)],
    ),
    "separator first": ([BLANK, A, EOS], [(0, 3)], [(0, 1), (1, 3)]),
    "blank tail": (
        [A, BLANK, SPACE, BLANK, EOS],
        [(0, 2)],
        [(0, 2), (2, 4), (4, 5)],
    ),
    "empty": ([EOS], [(0, 1)], [(0, 1)]),
    "only blank": ([BLANK, SPACE, BLANK, EOS], [(0, 4)], [(0, 1), (1, 3), (3, 4)]),
    "two single newlines": ([A, NEWLINE, NEWLINE, B, EOS], [(0, 5)], [(0, 5)]),
    "newlines inside a token": ([A, SO, EOS], [(0, 3)], [(0, 3)]),
    "zero-width is blank": ([ZERO_WIDTH, A, EOS], [(0, 3)], [(0, 1), (1, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_step_spans(splitter, name):
    response, merged, kept = CASES[name]
    ids = np.array(response)
    assert [tuple(span) for span in splitter.step_spans(ids)] == merged
    assert [
        tuple(span) for span in splitter.step_spans(ids, blank_steps="keep")
    ] == kept


def test_has_visible(splitter):
    assert splitter.has_visible(np.array([BLANK, A, EOS]))
    assert not splitter.has_visible(np.array([BLANK, SPACE, EOS]))


def spans_one_token_at_a_time(splitter, ids):
    """What an environment does: decide at each token, knowing only the past."""
    spans: list[list[int]] = []
    start = 0
    for t, token_id in enumerate(ids):
        is_over = t == len(ids) - 1
        visible = splitter.has_visible(np.array(ids[start : t + 1]))
        due = visible and (splitter.ends_step(token_id) or is_over)
        if due or (is_over and not spans):
            spans.append([start, t + 1])
            start = t + 1
    return spans


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=12))
def test_both_forms_agree(ids):
    splitter = StepSplitter.from_tokenizer(ListTokenizer())
    spans = splitter.step_spans(np.array(ids)).tolist()
    assert spans == spans_one_token_at_a_time(splitter, ids)


def test_ids_beyond_the_tokenizer_are_neither():
    splitter = StepSplitter.from_tokenizer(ListTokenizer(), vocab_size=16)
    assert len(splitter.is_separator) == len(splitter.is_visible) == 16
    assert not splitter.is_separator[len(TEXTS) :].any()
    assert not splitter.is_visible[len(TEXTS) :].any()


def test_tables_are_made_once_per_tokenizer():
    tokenizer = ListTokenizer()
    first = StepSplitter.from_tokenizer(tokenizer)
    assert StepSplitter.from_tokenizer(tokenizer) is first


def test_tokenizer_without_separator():
    with pytest.raises(ValueError, match="must have a token that ends with two"):
        StepSplitter.from_tokenizer(ListTokenizer(["<pad>", "<eos>", "\n", "a"]))


def test_single_token_id():
    assert single_token_id(ListTokenizer(), "\n") == NEWLINE
    with pytest.raises(ValueError, match="exactly one token"):
        single_token_id(ListTokenizer(), "\n\n\n")


def test_empty_row_is_an_error(splitter):
    with pytest.raises(ValueError, match="at least one"):
        splitter.step_spans(np.array([], dtype=np.int64))


def test_lengths():
    ends = torch.tensor([[1, 3, 4], [2, -1, -1]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert step_lengths(ends, mask).tolist() == [[2, 2, 1], [3, 0, 0]]


QWEN = Path(__file__).parents[2] / "../shared/data/tokenizers/qwen2.5"


@pytest.mark.slow
@pytest.mark.skipif(not QWEN.exists(), reason=f"no Qwen2.5 tokenizer at {QWEN}")
def test_qwen2_5_has_564_separators():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(QWEN)
    splitter = StepSplitter.from_tokenizer(tokenizer, vocab_size=151_936)
    assert splitter.is_separator.sum() == 564
    assert splitter.ends_step(271)  # "\n\n"
    assert not splitter.is_visible[tokenizer.eos_token_id]
    assert single_token_id(tokenizer, "\n") == 198
    # "Hello" ".\n\n\n\n" "So" " x" "\n\n" " \n\n": the last one is blank.
    ids = np.array(tokenizer.encode("Hello.\n\n\n\nSo x\n\n \n\n"))
    assert splitter.step_spans(ids).tolist() == [[0, 2], [2, 5]]
