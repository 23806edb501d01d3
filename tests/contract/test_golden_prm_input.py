"""The rows of `PRMInputBuilder` against the published code's reward model inputs."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.rewards.prm.rows import PRMInputBuilder, PRMRow
from tests.contract.golden_io import load


def cases(name: str) -> list[Any]:
    """One parameter set (the file's words, case) for each case of a file."""
    golden = load(name)
    words = golden["meta"]["vocab"]
    return [pytest.param(words, case, id=case["id"]) for case in golden["cases"]]


def build(
    words: list[str], given: dict[str, Any], responses: list[list[int]], input_format
) -> tuple[list[PRMRow], list[np.ndarray]]:
    """Our rows, and the step spans that they are made of."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )
    splitter = StepSplitter.from_tokenizer(tokenizer)
    separators = np.flatnonzero(splitter.is_separator)
    assert separators.tolist() == given["separator_ids"]
    builder = PRMInputBuilder(tokenizer, given["prm_newline_id"], input_format)
    spans = [splitter.step_spans(np.array(r), blank_steps="keep") for r in responses]
    rows = map(builder.row, given["prompts"], responses, spans)
    return list(rows), spans


def unpadded(expected: dict[str, Any], key: str) -> list[list[int]]:
    """A golden tensor's rows without their padding."""
    pairs = zip(expected[key], expected["attention_mask"], strict=True)
    return [
        [x for x, kept in zip(row, mask, strict=True) if kept] for row, mask in pairs
    ]


@pytest.mark.parametrize(("words", "case"), cases("openrlhf_prm_input"))
def test_openrlhf_input(words, case):
    given, expected = case["inputs"], case["outputs"]
    eos, width = given["eos_token_id"], max(map(len, given["responses"]))
    # The branch writes an EOS behind a response that ends before the buffer does.
    responses = [
        r if eos in r or len(r) == width else [*r, eos] for r in given["responses"]
    ]
    rows, spans = build(words, given, responses, "pure_openrlhf")
    assert [row.input_ids.tolist() for row in rows] == unpadded(expected, "input_ids")
    longest_prompt = max(map(len, given["prompts"]))
    for number, (row, steps) in enumerate(zip(rows, spans, strict=True)):
        padding = longest_prompt - len(given["prompts"][number])
        places = [p - padding for p in expected["score_positions"][number] if p >= 0]
        assert row.score_positions.tolist() == places
        lengths = np.array(expected["num_tokens_per_step"][number])
        mask = np.array(expected["score_mask"][number], bool)
        assert (np.diff(steps)[:, 0] - 1).tolist() == lengths[mask].tolist()


@pytest.mark.parametrize(("words", "case"), cases("verl_prm_input"))
def test_verl_input(words, case):
    given, expected = case["inputs"], case["outputs"]
    eos, pad, width = (
        given[key] for key in ("eos_token_id", "pad_token_id", "response_buffer")
    )
    # Without an EOS the branch takes the whole buffer for the response.
    responses = [
        r if eos in r else r + [pad] * (width - len(r)) for r in given["responses"]
    ]
    rows, _ = build(words, given, responses, "pure_verl")
    assert [row.input_ids.tolist() for row in rows] == unpadded(expected, "input_ids")
    for row, prompt, is_end, positions in zip(
        rows,
        given["prompts"],
        expected["reward_mask"],
        unpadded(expected, "position_ids"),
        strict=True,
    ):
        assert row.score_positions.tolist() == [
            len(prompt) + column for column in np.flatnonzero(is_end)
        ]
        # What a model counts by itself, for our rows are padded on the right.
        assert positions == list(range(len(row.input_ids)))
