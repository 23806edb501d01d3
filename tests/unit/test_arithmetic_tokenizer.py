import random

import pytest
from transformers import AutoTokenizer, Qwen2Config

from pure_rllib.arithmetic.task import STEP_SEPARATOR, TASK_M20B, TASK_Y, TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer


@pytest.mark.parametrize(
    ("task", "size"), [(TASK_Z, 22), (TASK_Y, 22), (TASK_M20B, 32)]
)
def test_every_text_of_the_task_survives_the_round_trip(task, size, tmp_path):
    build_tokenizer(task).save_pretrained(tmp_path)
    # AutoTokenizer chooses its class by the model that lies in the same folder.
    Qwen2Config().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == size
    rng = random.Random(0)
    for index in range(100):
        problem = task.problem(index)
        steps = task.solution_steps(problem.prompt, rng)
        text = problem.prompt + STEP_SEPARATOR.join(steps) + "\n"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        ends = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert tokenizer.decode(ends, skip_special_tokens=True) == text


def test_words_are_one_token_each():
    tokenizer = build_tokenizer(TASK_M20B)
    text = "now 13-2\n\nchk 13-2=11\n\n\\boxed{11}\n"
    assert [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]] == [
        *("now ", "13", "-", "2", "\n\n"),
        *("chk ", "13", "-", "2", "=", "11", "\n\n"),
        *("\\boxed{", "11", "}", "\n"),
    ]


def test_a_model_takes_what_the_tokenizer_gives():
    keys = set(build_tokenizer(TASK_Z)("3+2=?"))
    assert keys == {"input_ids", "attention_mask"}
