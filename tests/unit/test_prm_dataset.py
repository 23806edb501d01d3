"""Rows of labelled steps are the rows that the reward model scores."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForTokenClassification

from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.prm_training.dataset import Collator, step_rows
from pure_rllib.prm_training.losses import IGNORED
from pure_rllib.prm_training.solutions import LabelledSolution, scoring_requests
from pure_rllib.rewards.prm.model import ProcessRewardModel
from pure_rllib.testing import byte_tokenizer, tiny_model_config

TOKENIZER = byte_tokenizer()
SOLUTION = LabelledSolution("1+1?", ("ab ", "c.\n\n", "d"), (True, None, False))


@pytest.fixture(scope="module")
def prm() -> ProcessRewardModel:
    torch.manual_seed(0)
    settings = tiny_model_config(len(TOKENIZER))
    settings.pop("model_type")
    model = Qwen2ForTokenClassification(Qwen2Config(**settings, num_labels=2))
    return ProcessRewardModel(model, TOKENIZER)


def test_labels_stand_at_appended_separators(prm: ProcessRewardModel):
    found = step_rows(
        [SOLUTION],
        prm.builder,
        template=PromptTemplate("Q {problem} "),
        columns=(1, 0),
        max_length=100,
    )
    [row] = found.rows
    # Q _ 1 + 1 ? _ | a b | c . | d |      | is the newline's id
    newline = TOKENIZER.encode("\n")[0]
    assert TOKENIZER.decode(row["input_ids"]) == "Q 1+1? ab\nc.\nd\n"
    places = np.flatnonzero(row["input_ids"] == newline)
    assert places.tolist() == [9, 12, 14]
    assert row["labels"][places].tolist() == [1, IGNORED, 0]
    assert (np.delete(row["labels"], places) == IGNORED).all()
    assert found.num_labels == 2
    assert (found.num_cut, found.num_dropped) == (0, 0)


def test_rows_are_those_of_a_sampled_response(prm: ProcessRewardModel):
    """What the policy samples, separators in tokens, gives the same PRM row."""
    sampled = TOKENIZER("ab\n\nc.\n\nd")["input_ids"]
    separators = {TOKENIZER.encode(text)[0] for text in ("\n\n", ".\n\n")}
    ends = [i + 1 for i, t in enumerate(sampled) if t in separators] + [len(sampled)]
    spans = np.array([[0, ends[0]], [ends[0], ends[1]], [ends[1], ends[2]]])
    prompt = TOKENIZER("1+1?")["input_ids"]
    in_rl = prm.builder.row(prompt, sampled, spans)  # type: ignore[union-attr]
    requests = scoring_requests([SOLUTION], TOKENIZER, PromptTemplate())
    [of_texts] = prm.builder.rows(requests)
    np.testing.assert_array_equal(of_texts.input_ids, in_rl.input_ids)
    np.testing.assert_array_equal(of_texts.score_positions, in_rl.score_positions)


def test_long_rows_lose_their_last_steps(prm: ProcessRewardModel):
    template = PromptTemplate()
    found = step_rows(
        [SOLUTION, LabelledSolution("a" * 50, ("b",), (True,))],
        prm.builder,
        template=template,
        columns=(1, 0),
        max_length=8,
    )
    assert len(found.rows) == 1
    assert TOKENIZER.decode(found.rows[0]["input_ids"]) == "1+1?ab\n"
    assert (found.num_cut, found.num_dropped) == (2, 1)
    with pytest.raises(ValueError, match="`max_length`"):
        step_rows(
            [SOLUTION], prm.builder, template=template, columns=(1, 0), max_length=5
        )


def test_padding_is_on_the_right():
    rows = [
        {"input_ids": np.array([5, 6, 7]), "labels": np.array([IGNORED, IGNORED, 1])},
        {"input_ids": np.array([8]), "labels": np.array([0])},
    ]
    batch = Collator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 1], [0, IGNORED, IGNORED]]
