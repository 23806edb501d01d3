"""Where steps end: hand-drawn rulers, then the vectorised form against a loop.

And with tokenizers of every family: the steps are the paragraphs of the text.
"""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pure_rllib.credit.steps import (
    StepSplitter,
    describe_steps,
    single_token_id,
    step_lengths,
)
from tests.tokenizer_families import FAMILIES, whole_words

TEXTS = (
    *("<pad>", "<eos>", "\n", "\n\n", ".\n\n", " ", "a", "b", "\n\nSo", "\u200b\n\n"),
    *("\r\n", "x\n", "\ny", "x\n \ny"),
)
PAD, EOS, NEWLINE, BLANK, DOT, SPACE, A, B, SO, ZERO_WIDTH = range(10)
CRLF, X_NEWLINE, NEWLINE_Y, BOTH = range(10, 14)


class ListTokenizer:
    """A tokenizer whose vocabulary is a list of texts; the first two are special."""

    def __init__(self, texts=TEXTS):
        self.texts = list(texts)

    def __len__(self):
        return len(self.texts)

    def batch_decode(self, ids, skip_special_tokens=False, **_):
        first = 2 if skip_special_tokens else 0
        return ["".join(self.texts[i] for i in row if i >= first) for row in ids]

    def encode(self, text, add_special_tokens=True):
        return [i for i, known in enumerate(self.texts) if known == text]


@pytest.fixture(scope="module")
def splitter():
    return StepSplitter.from_tokenizer(ListTokenizer())


def test_tables(splitter):
    assert np.flatnonzero(splitter.is_separator).tolist() == [BLANK, DOT, ZERO_WIDTH]
    visible = [DOT, A, B, SO, X_NEWLINE, NEWLINE_Y, BOTH]
    assert np.flatnonzero(splitter.is_visible).tolist() == visible


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
    "two single newlines": ([A, NEWLINE, NEWLINE, B, EOS], [(0, 3), (3, 5)], [(0, 5)]),
    "one newline": ([A, NEWLINE, B, NEWLINE, A, EOS], [(0, 6)], [(0, 6)]),
    "white space behind a blank line": (
        [A, NEWLINE, NEWLINE, NEWLINE, NEWLINE, B, EOS],
        [(0, 3), (3, 7)],
        [(0, 7)],
    ),
    "a space between": ([A, NEWLINE, SPACE, NEWLINE, B], [(0, 4), (4, 5)], [(0, 5)]),
    "CRLF": ([A, CRLF, CRLF, B], [(0, 3), (3, 4)], [(0, 4)]),
    "EOS has no text": ([A, NEWLINE, EOS, NEWLINE, B], [(0, 4), (4, 5)], [(0, 5)]),
    "half of it with text": ([X_NEWLINE, NEWLINE, B], [(0, 2), (2, 3)], [(0, 3)]),
    "text behind it": ([A, NEWLINE, NEWLINE_Y, B], [(0, 3), (3, 4)], [(0, 4)]),
    "newlines inside a token": ([A, SO, B, EOS], [(0, 2), (2, 4)], [(0, 4)]),
    "text on both sides": ([BOTH, B, EOS], [(0, 1), (1, 3)], [(0, 3)]),
    "text behind more newlines": (
        [A, BLANK, SO, EOS],
        [(0, 2), (2, 4)],
        [(0, 2), (2, 4)],
    ),
    "a blank line before any text": ([SO, B, EOS], [(0, 3)], [(0, 3)]),
    "and in two tokens": ([NEWLINE, NEWLINE_Y, B, EOS], [(0, 4)], [(0, 4)]),
    "zero-width is blank": ([ZERO_WIDTH, A, EOS], [(0, 3)], [(0, 1), (1, 3)]),
    "zero-width in a blank line": (
        [A, NEWLINE, ZERO_WIDTH, B],
        [(0, 3), (3, 4)],
        [(0, 3), (3, 4)],
    ),
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


def is_visible(text):
    return any(c.isprintable() and not c.isspace() for c in text)


def spans_one_character_at_a_time(texts):
    """The rule, read off the text: what an environment may know at each token."""
    spans, start = [], 0
    newlines, any_text, token_seen = 0, False, False
    for t, text in enumerate(texts):
        due = False
        for char in text:
            if is_visible(char):
                newlines, any_text = 0, True
            newlines += char == "\n"
            due |= char == "\n" and newlines == 2 and any_text
        token_seen |= is_visible(text)
        if due and token_seen:
            spans.append([start, t + 1])
            start, token_seen = t + 1, False
    if token_seen or not spans:
        spans.append([start, len(texts)])
    return spans


any_ids = st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=14)


@settings(max_examples=200)
@given(any_ids)
def test_the_arrays_agree_with_a_reading_of_the_text(ids):
    splitter = StepSplitter.from_tokenizer(ListTokenizer())
    texts = ["" if i in (PAD, EOS) else TEXTS[i] for i in ids]
    expected = spans_one_character_at_a_time(texts)
    assert splitter.step_spans(np.array(ids)).tolist() == expected


@settings(max_examples=100)
@given(any_ids)
def test_a_step_that_has_ended_stays(ids):
    splitter = StepSplitter.from_tokenizer(ListTokenizer())
    whole = splitter.step_spans(np.array(ids), is_over=False).tolist()
    for t in range(1, len(ids)):
        so_far = splitter.step_spans(np.array(ids[:t]), is_over=False).tolist()
        assert so_far == [span for span in whole if span[1] <= t]


def test_ids_beyond_the_tokenizer_are_neither():
    splitter = StepSplitter.from_tokenizer(ListTokenizer(), vocab_size=16)
    assert len(splitter.is_separator) == len(splitter.is_visible) == 16
    assert not splitter.is_separator[len(TEXTS) :].any()
    assert not splitter.is_visible[len(TEXTS) :].any()


def test_tables_are_made_once_per_tokenizer():
    tokenizer = ListTokenizer()
    first = StepSplitter.from_tokenizer(tokenizer)
    assert StepSplitter.from_tokenizer(tokenizer) is first


def test_tokenizer_without_newline():
    with pytest.raises(ValueError, match="must have a token with a newline"):
        StepSplitter.from_tokenizer(whole_words())


def test_single_token_id():
    assert single_token_id(ListTokenizer(), "\n") == NEWLINE
    with pytest.raises(ValueError, match="exactly one token"):
        single_token_id(ListTokenizer(), "\n\n\n")


def test_a_single_token_is_the_text_and_nothing_else():
    # An unknown word is one token, and so may be a space with what follows.
    with pytest.raises(ValueError, match="decodes to '<unk>'"):
        single_token_id(whole_words(), "zwölf")
    tokenizer = FAMILIES["gpt2 with a space in front"]()
    with pytest.raises(ValueError, match=r"`text` \('cups'\).* decodes to ' cups'"):
        single_token_id(tokenizer, "cups")
    assert single_token_id(FAMILIES["gpt2"](), "\n") > 0


def test_empty_row_is_an_error(splitter):
    with pytest.raises(ValueError, match="at least one"):
        splitter.step_spans(np.array([], dtype=np.int64))


def test_lengths():
    ends = torch.tensor([[1, 3, 4], [2, -1, -1]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert step_lengths(ends, mask).tolist() == [[2, 2, 1], [3, 0, 0]]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


def test_how_a_tokenizer_writes_a_blank_line_is_said(family, request):
    tokens = {"llama3": "one token", "gemma": "one token"}
    name = request.node.callspec.params["family"]
    assert describe_steps(family).endswith(f"as {tokens.get(name, '2 tokens')}.")


def paragraphs(text):
    shown = "".join(c if c == "\n" or is_visible(c) else " " for c in text)
    return [p.strip() for p in re.split(r"\n\s*\n", shown) if p.strip()]


def step_texts(tokenizer, ids):
    spans = StepSplitter.from_tokenizer(tokenizer).step_spans(np.array(ids))
    rows = [ids[start:end] for start, end in spans]
    # One paragraph a step, or none in a response without anything visible.
    found = [
        paragraphs(tokenizer.decode(row, skip_special_tokens=True)) for row in rows
    ]
    assert all(len(step) == 1 for step in found) or found == [[]]
    return [paragraph for step in found for paragraph in step]


def written(tokenizer, text):
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


words = st.sampled_from(["So x", "2 + 3 = 5.", "π ≤ 中文", "\\boxed{4}", "it is:", " "])
ends = st.sampled_from(["\n\n", "\n", "\n\n\n", " \n\n", "\r\n\r\n", "\n \n", "\r\n"])
texts_of_paragraphs = st.lists(st.tuples(words, ends), min_size=1, max_size=8).map(
    lambda pairs: "".join(word + end for word, end in pairs)
)


@settings(max_examples=40)
@given(texts_of_paragraphs)
def test_steps_are_the_paragraphs_of_the_text(family, text):
    assert step_texts(family, written(family, text)) == paragraphs(text)


@settings(max_examples=40)
@given(st.data())
def test_so_they_are_for_ids_that_no_encoder_writes(family, data):
    splitter = StepSplitter.from_tokenizer(family)
    texts = family.batch_decode([[i] for i in range(len(family))])
    # A byte of a character changes what its neighbours are decoded to.
    whole = [i for i, text in enumerate(texts) if "\ufffd" not in text]
    newlines = [i for i in whole if splitter.has_newline[i]]
    any_id = st.sampled_from(whole) | st.sampled_from(newlines)
    ids = data.draw(st.lists(any_id, min_size=1, max_size=16))
    text = family.decode(ids, skip_special_tokens=True)
    assert step_texts(family, ids) == paragraphs(text)


def test_special_tokens_that_the_tokenizer_does_not_name_have_no_text():
    tokenizer = FAMILIES["llama3"]()
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end not in tokenizer.all_special_ids
    assert not StepSplitter.from_tokenizer(tokenizer).is_visible[end]


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return AutoTokenizer.from_pretrained(qwen_folder)


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\n \n", "\n\t\n\n", "\r\n\n"])
def test_blank_lines_of_any_kind_with_qwen2_5(qwen, blank):
    ids = written(qwen, blank.join(["Two.", "Then\nx", "So"]))
    assert step_texts(qwen, ids) == ["Two.", "Then\nx", "So"]


def test_qwen2_5_has_564_tokens_that_end_with_two_newlines(qwen):
    splitter = StepSplitter.from_tokenizer(qwen)
    assert splitter.is_separator.sum() == 564
    assert splitter.is_separator[271]  # "\n\n"
    assert not splitter.is_visible[qwen.eos_token_id]
    assert single_token_id(qwen, "\n") == 198
    # "Hello" ".\n\n\n\n" "So" " x" "\n\n" " \n\n": the last one is blank.
    ids = np.array(qwen.encode("Hello.\n\n\n\nSo x\n\n \n\n"))
    assert splitter.step_spans(ids).tolist() == [[0, 2], [2, 5]]


def test_what_qwen2_5_writes_is_divided_as_by_token(qwen, shared_dir):
    splitter = StepSplitter.from_tokenizer(qwen)
    path = shared_dir / "data/process/processbench/math.json"
    for solution in json.loads(path.read_text())[:100]:
        ids = np.array(written(qwen, "\n\n".join(solution["steps"])))
        by_token = np.flatnonzero(splitter.is_separator[ids]) + 1
        ends = splitter.step_spans(ids)[:, 1].tolist()
        assert ends == [*by_token.tolist(), len(ids)]
        assert splitter.num_separators(ids) == len(by_token) > 0
