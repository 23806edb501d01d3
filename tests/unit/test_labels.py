"""Labels: prompts with choices, and rewards that cannot be had without the label."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.labels import (
    NO_THINKING,
    THINKING,
    LabelEnv,
    LabelProblems,
    num_choices,
)
from pure_rllib.rewards.labels import LabelVerifier, answer_in

RIGHT = "<think>it barks</think><answer>Beagle</answer>"


@pytest.mark.parametrize(
    ("text", "score", "outcome"),
    [
        (RIGHT, 1.0, "correct"),
        ("<think>a\nb</think>\n<answer>\n beagle\n</answer>", 1.0, "correct"),
        ("beagle", 0.5, "correct"),
        ("<answer>beagle</answer>", 0.5, "correct"),
        (RIGHT + "\n", 0.5, "correct"),
        ("<think>x</think><answer>pug</answer>", 0.5, "incorrect"),
        # What the published rewards or their evaluation would pay for:
        (
            "<think><answer>beagle</answer></think><answer>pug</answer>",
            0.5,
            "incorrect",
        ),
        ("<think>x</think><answer>pug or beagle</answer>", 0.5, "incorrect"),
        ("<think>x <answer>beagle</answer>", 0.0, "no_answer"),
        # A chat template has opened the thinking.
        ("<answer>beagle</answer></think><answer>pug</answer>", 0.0, "incorrect"),
        ("it barks</think><answer>beagle</answer>", 0.5, "correct"),
        ("<think>x</think><answer></answer>", 0.5, "no_answer"),
        ("it is a beagle", 0.0, "incorrect"),
        ("", 0.0, "no_answer"),
    ],
)
def test_thinking_earns_by_label_and_format(
    text: str, score: float, outcome: str
) -> None:
    (verdict,) = LabelVerifier().verify(["beagle"], [text])
    assert (verdict.reward, verdict.outcome) == (score, outcome)
    assert sum(verdict.parts.values()) / 2 == score


@pytest.mark.parametrize("text", ["Beagle", " beagle", "beagle.", RIGHT, ""])
def test_no_thinking_earns_by_the_label_alone(text: str) -> None:
    verifier = LabelVerifier(thinking=False)
    right, other = verifier.verify(["beagle"] * 2, ["beagle", text])
    assert (right.reward, other.reward) == (1.0, 0.0)


def test_names_are_not_numbers() -> None:
    text = "<think>x</think><answer>Cessna 737-800</answer>"
    (verdict,) = LabelVerifier(published=True).verify(["Boeing 737-800"], [text])
    assert verdict.parts["accuracy"] == 0.0


def test_letters_that_fold_to_others_are_equal_but_to_the_published_rewards() -> None:
    for published, accuracy in ((False, 1.0), (True, 0.0)):
        verifier = LabelVerifier(published=published)
        (verdict,) = verifier.verify(["Straße"], ["<answer>STRASSE</answer>"])
        assert verdict.parts["accuracy"] == accuracy


def test_the_published_rewards_count_an_answer_inside_of_the_thinking() -> None:
    text = "<think><answer>beagle</answer></think><answer>pug</answer>"
    (verdict,) = LabelVerifier(published=True).verify(["beagle"], [text])
    assert verdict.reward == 1.0
    assert answer_in(text) == "pug"


@pytest.mark.parametrize(
    ("classes", "shown"), [(2, 2), (74, 74), (75, 30), (100, 40), (1000, 100)]
)
def test_how_many_choices_are_shown(classes: int, shown: int) -> None:
    assert num_choices(classes) == shown


def test_a_prompt_asks_shows_and_instructs() -> None:
    dogs = ListProblems([Problem("It barks.", "beagle"), Problem("It snores.", "pug")])
    made = LabelProblems(dogs, ["pug", "beagle"], question="Which dog? {text}")
    first = made[0].prompt.split("\n")
    assert first[0] == "Which dog? It barks."
    assert first[1] in (
        "Please choose one from list [ pug, beagle].",
        "Please choose one from list [ beagle, pug].",
    )
    assert first[2] == f" {THINKING}"
    assert made[0] == made[0]
    direct = LabelProblems(dogs, ["pug", "beagle"], thinking=False)
    assert direct[1].prompt.startswith("It snores.\n")
    assert direct[1].prompt.endswith(f"\n {NO_THINKING}")


def test_the_label_is_always_among_the_choices() -> None:
    names = [f"kind {i}" for i in range(200)]
    source = ListProblems([Problem("x", name) for name in names])
    made = LabelProblems(source, names)
    for index, name in enumerate(names):
        choices = made[index].prompt.split("[ ")[1].split("]")[0].split(", ")
        assert name in choices and len(set(choices)) == 80


def env(**kwargs: Any) -> LabelEnv:
    settings = {"tokenizer": build_tokenizer(TASK_Z), "prompt_template": "plain"}
    return LabelEnv(**{**settings, **kwargs})


def test_any_data_file_will_do(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "label": "x"},
        {"text": "b", "label": "y", "classes": ["y", "z"]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    made = env(
        problems={"source": str(file), "prompt_field": "text", "answer_field": "label"}
    )
    assert "x" in made.problems[0].prompt.split("[")[1]
    assert "z" in made.problems[1].prompt


CLASSED = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])}
)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder"])
def test_text_and_label_are_found_with_the_names_of_classes(
    tmp_path: Path, kind: str
) -> None:
    rows = [{"text": "a, b", "label": "x"}, {"text": '"c"', "label": "y"}]
    data = datasets.Dataset.from_list(rows)
    file = str(tmp_path / f"rows.{kind}")
    if kind == "csv":
        data.to_csv(file)
    elif kind == "jsonl":
        data.to_json(file)
    else:
        data = data.cast(CLASSED)
        assert data[0]["label"] == 0
        data.to_parquet(file) if kind == "parquet" else data.save_to_disk(file)
    made = env(problems=file)
    assert made.problems[0].prompt.startswith("a, b\n")
    assert [made.problems[i].answer for i in range(2)] == ["x", "y"]


def test_classes_are_read_as_labels_are() -> None:
    numbered = [Problem("a", "1"), Problem("b", "2", metadata={"classes": [2, "2", 3]})]
    made = env(problems=numbered, classes=[1, 2.0, " 3 "])
    first, second = (made.problems[i].prompt.split("\n")[1] for i in range(2))
    assert sorted(first) == sorted("Please choose one from list [ 1, 2, 3].")
    assert sorted(second) == sorted("Please choose one from list [ 2, 3].")


def test_texts_over_the_limit_are_left_out() -> None:
    texts = [Problem("1", "x"), Problem("1" * 600, "y")]
    made = env(problems=texts, max_prompt_tokens=512)
    assert len(made.problems) == 1 and made.num_dropped_prompts == 1


def test_procedural_tasks_have_labels_by_hand() -> None:
    sign, value = env(problems="sign"), env(problems="value", thinking=False)
    for made, index in ((sign, 0), (value, 1)):
        assert made.eval_problems is not None and len(made.eval_problems) == 200
        assert str(made.problems[index].answer)
    problem = sign.problems[3]
    chain = problem.prompt.splitlines()[0]
    answer = "+" if chain.count("+") > chain.count("-") else "-"
    assert chain.count("+") == chain.count("-") or problem.answer == answer
    assert str(value.problems[0].answer) in set("0123456789")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["*", "/"]}, "must hold the label"),
        ({"classes": ["+"]}, "and others, because one of them is to be chosen"),
        ({"classes": "+-"}, "`classes` ('+-') must be a list of labels"),
        ({"thinking": "no"}, "`thinking` ('no') must be True or False"),
        ({"question": "Which?"}, "must hold {text}"),
        ({"num_problems": 0}, "`num_problems` (0) must be >= 1"),
        ({"problems": ListProblems([Problem("a")])}, "must list all labels"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        env(**settings).problems[0]
    assert message in str(error.value)
