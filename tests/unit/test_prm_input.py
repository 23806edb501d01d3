"""Rows of the reward model, token by token."""

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pure_rllib.credit.steps import BlankSteps, StepSplitter
from pure_rllib.rewards.prm.rows import PRMInputBuilder
from tests.tokenizer_families import FAMILIES

WORDS = ["<pad>", "<eos>", "\n", "\n\n", ".\n\n", ".", " ", "a", "b", "c", "P"]
PAD, EOS, NL, BLANK, DOT_BLANK, DOT, SPACE, A, B, C, P = range(len(WORDS))


def make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\.\n\n|\n\n|\n|\.| |[abcP]"), "isolated"
    )
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )


def build(response, input_format="pure_rllib", prompt=(P, P)):
    tokenizer = make_tokenizer()
    blank_steps: BlankSteps = "merge" if input_format == "pure_rllib" else "keep"
    spans = StepSplitter.from_tokenizer(tokenizer).step_spans(
        np.array(response), blank_steps=blank_steps
    )
    builder = PRMInputBuilder(tokenizer, NL, input_format)
    row = builder.row(list(prompt), response, spans)
    return row.input_ids.tolist(), row.score_positions.tolist()


@pytest.mark.parametrize(
    ("response", "ids", "positions"),
    [
        # a b .\n\n | c EOS: the full stop stays, EOS goes.
        ([A, B, DOT_BLANK, C, EOS], [P, P, A, B, DOT, NL, C, NL], [5, 7]),
        # A separator without a visible part leaves nothing behind.
        ([A, BLANK, B, EOS], [P, P, A, NL, B, NL], [3, 5]),
        # Blank steps open the next one and are not shown.
        ([BLANK, SPACE, A, BLANK, BLANK, B, EOS], [P, P, A, NL, B, NL], [3, 5]),
        # White space inside a step stays, around it goes.
        ([A, SPACE, B, SPACE, BLANK, C, EOS], [P, P, A, SPACE, B, NL, C, NL], [5, 7]),
        # Cut by the budget: the last token is shown.
        ([A, DOT_BLANK, B, C], [P, P, A, DOT, NL, B, C, NL], [4, 7]),
        ([A, B, DOT_BLANK], [P, P, A, B, DOT, NL], [5]),
        # A blank line of two tokens.
        ([A, NL, NL, B, EOS], [P, P, A, NL, B, NL], [3, 5]),
    ],
)
def test_our_rows(response, ids, positions):
    assert build(response) == (ids, positions)


def test_published_rows_replace_step_ends():
    # a b .\n\n \n\n c EOS: the blank step is a step, the full stop is lost.
    row = build([A, B, DOT_BLANK, BLANK, C, EOS], "pure_openrlhf")
    assert row == ([P, P, A, B, NL, NL, C, NL], [4, 5, 7])
    assert row == build([A, B, DOT_BLANK, BLANK, C, EOS], "pure_verl")


@pytest.mark.parametrize("input_format", ["pure_openrlhf", "pure_verl"])
def test_published_rows_of_responses_that_the_budget_cut(input_format):
    # Inside a step its last token is lost, on a separator nothing more than that.
    assert build([A, DOT_BLANK, B, C], input_format) == ([P, P, A, NL, B, NL], [3, 5])
    assert build([A, B, DOT_BLANK], input_format) == ([P, P, A, B, NL], [4])


def test_ids_beyond_the_tokenizer_are_left_out():
    builder = PRMInputBuilder(make_tokenizer(), NL)
    assert builder.step_ids([A, 99, B, 99]) == [A, B]
    # A reward model whose embedding ends before C and P.
    small = PRMInputBuilder(make_tokenizer(), NL, vocab_size=C)
    assert small.step_ids([A, C, B, C]) == [A, B]
    response, spans = [A, C, DOT_BLANK, B, 99, EOS], np.array([[0, 3], [3, 6]])
    row = small.row([P, SPACE, 99], response, spans)
    assert row.input_ids.tolist() == [SPACE, A, DOT, NL, B, NL]
    published = PRMInputBuilder(make_tokenizer(), NL, "pure_verl", vocab_size=C)
    row = published.row([P, SPACE, 99], response, spans)
    assert row.input_ids.tolist() == [SPACE, A, NL, B, NL]
    assert row.score_positions.tolist() == [2, 4]


def test_special_tokens_are_not_shown_wherever_they_stand():
    row, positions = build([PAD, A, EOS, B, DOT_BLANK, PAD, C, EOS], prompt=(P, PAD))
    assert (row, positions) == ([P, PAD, A, B, DOT, NL, C, NL], [5, 7])


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="must be one of"):
        PRMInputBuilder(make_tokenizer(), NL, "qwen")  # type: ignore[arg-type]


def test_the_visible_part_of_a_token_stays_where_it_was():
    tokenizer = FAMILIES["mistral"]()
    tokenizer.add_tokens([".\n\n", ":\r\n\r\n"])
    builder = PRMInputBuilder(tokenizer, 13)
    word = tokenizer.encode("x", add_special_tokens=False)
    for text, shown in ((".\n\n", "x."), (":\r\n\r\n", "x:")):
        step = [*word, tokenizer.convert_tokens_to_ids(text)]
        assert tokenizer.decode(builder.step_ids(step)) == shown


def test_every_separator_of_qwen_keeps_its_visible_part(qwen_tokenizer):
    tokenizer = qwen_tokenizer
    splitter = StepSplitter.from_tokenizer(tokenizer)
    builder = PRMInputBuilder(tokenizer, 198)
    word = tokenizer.encode("word")
    separators = np.flatnonzero(splitter.is_separator)
    assert len(separators) == 564
    for token in separators.tolist():
        text = tokenizer.decode([token])
        shown = tokenizer.decode(builder.step_ids([*word, token]))
        assert shown == "word" + (
            text.rstrip("\n") if splitter.is_visible[token] else ""
        )
