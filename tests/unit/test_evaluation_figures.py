"""From samples and verdicts to the figures of an evaluation.

Tests are named by the required behaviours R7 ... of evaluations.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.problems import Problem
from pure_rllib.evaluation.compare import compare
from pure_rllib.evaluation.estimators import majority_at_k, pass_at_k, sample_sizes
from pure_rllib.evaluation.judges import (
    QUESTION,
    JudgeTask,
    StepJudge,
    read_verdict,
    suspicious,
)
from pure_rllib.evaluation.measure import ProblemResult, average, measure, warnings_of
from pure_rllib.evaluation.report import Report, for_the_page, without_nan
from pure_rllib.evaluation.samples import LineFile, ProblemVerdicts, Sample
from pure_rllib.evaluation.settings import (
    JudgeSettings,
    SamplingSettings,
)
from pure_rllib.rewards.base import FunctionScorer
from pure_rllib.testing import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


def sample(problem: int, number: int, outcome: Any, **kwargs: Any) -> Sample:
    fields = {
        "decoding": "sampled",
        "seed": 100 * problem + number,
        "token_ids": [1, 2, 3],
        "terminated": True,
        "text": f"text {problem} {number}",
        "answer": "1" if outcome == "correct" else "2",
    }
    return Sample(
        problem=problem,
        problem_id=str(problem),
        number=number,
        outcome=outcome,
        **{**fields, **kwargs},
    )


def result(
    problem: int,
    outcomes: Sequence[str],
    reasoning: dict[str, list[bool | None]] | None = None,
    **kwargs: Any,
) -> ProblemResult:
    made = [sample(problem, i, o, **kwargs) for i, o in enumerate(outcomes)]
    classes = [
        None if o == "no_answer" else 0 if o == "correct" else 1 for o in outcomes
    ]
    known = {
        c: i for i, c in enumerate(dict.fromkeys(c for c in classes if c is not None))
    }
    return ProblemResult(
        Problem(f"problem {problem}", "1", str(problem)),
        greedy=[sample(problem, 0, outcomes[0], decoding="greedy", **kwargs)],
        sampled=made,
        verdicts=ProblemVerdicts(
            problem=problem,
            classes=[None if c is None else known[c] for c in classes],
            reasoning=reasoning or {},
            step_scores={},
        ),
    )


R, W, N = "correct", "incorrect", "no_answer"


def test_figures_by_hand() -> None:
    rows = [result(0, [R, R, W, N]), result(1, [W, W, N, N])]
    figures = measure(rows, judge=None, seed=0)
    assert figures["greedy"]["accuracy"] == 0.5
    sampled = figures["sampled"]
    # shares of right samples: 2/4 and 0
    assert sampled["avg"] == 0.25
    assert sampled["se"] == pytest.approx(math.sqrt(0.125) / math.sqrt(2))
    # pass@2 of problem 0: 1 - C(2,2) / C(4,2) = 5/6
    assert sampled["pass_at_k"]["2"]["mean"] == pytest.approx(5 / 12)
    assert sampled["maj_at_k"]["4"]["mean"] == 0.5
    assert sampled["no_answer_share"] == 3 / 8


def test_reasoning_by_hand_and_as_bounds() -> None:
    verdicts: dict[str, list[bool | None]] = {
        "sampled-0": [True, True, None],
        "sampled-1": [True, None, None],
    }
    figures = measure([result(0, [R, R, W, W], verdicts)], judge="lm:x", seed=0)
    cot = figures["cot"]
    assert cot["name"] == "cot_pass@4[lm:x]"
    assert cot["reasoning_given_answer"] == {"any": 1.0, "majority": 0.5, "all": 0.0}
    assert cot["answer_correct"] == 0.5 and cot["num_unreadable"] == 3
    assert any("3 verdicts" in text for text in warnings_of("x", figures))
    # d = 1 of 4: 1 - C(3,2) / C(4,2) = 1/2
    assert cot["cot_pass_at_k"]["majority"]["2"]["mean"] == 0.5


def test_the_page_shows_some_of_each_kind_and_wrong_ones_first() -> None:
    outcomes = [R, R, R, R, *[W] * 20]
    right, wrong = [True], [False]
    verdicts: dict[str, list[bool | None]] = {
        f"sampled-{i}": [*(wrong if i == 2 else right)] for i in range(4)
    }
    of_problem = result(0, outcomes, verdicts)
    samples = for_the_page(of_problem)
    assert len(samples) == 25
    shown = samples[:8]
    assert [s.correct for s in shown] == sorted(s.correct for s in shown)
    assert "wrong" in {of_problem.reasoning_of(s) for s in shown}
    assert "right" in {of_problem.reasoning_of(s) for s in shown}


def test_an_average_over_a_single_problem_has_no_error(tmp_path: Path) -> None:
    one = measure([result(0, [R, W])], judge=None, seed=0)
    two = measure([result(0, [R, W]), result(1, [R, R])], judge=None, seed=0)
    metrics = {"one": one, "two": two}
    data = {"metrics": metrics, "average": average(metrics), "warnings": []}
    text = json.dumps(without_nan(data))
    table = Report(tmp_path, json.loads(text)).table()
    assert table.splitlines()[-1].split()[:4] == ["average", "-", "100.0", "62.5"]


def test_problems_of_one_side_only_are_refused(tmp_path: Path) -> None:
    def written(name: str, *lines: str) -> list[Path]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "evaluation.json").write_text('{"settings": {}, "metrics": {}}')
        heads = "benchmark,problem_id,greedy,n,c,d,prompt\n"
        (folder / "problems.csv").write_text(heads + "".join(f"{x}\n" for x in lines))
        return [folder]

    one = written("one", "x,0,1,4,4,,same", "x,1,0,4,0,,same")
    other = written("other", "x,0,1,4,4,,same", "x,1,1,4,2,,same")
    found, _ = compare({"one": one, "other": other}, tmp_path / "out")
    row = found["comparisons"]["other - one"]["x"]
    assert row["greedy"]["only_b"] == 1 and row["sampled"]["difference"] == 0.25
    more = written("more", *["x,0,1,4,4,,same"] * 2, "y,0,1,4,4,,another")
    fewer = written("fewer", "x,0,1,4,4,,same")
    for a, b in ((one, more), (more, one), (one, fewer)):
        with pytest.raises(ValueError, match="must have the same problems"):
            compare({"a": a, "b": b}, tmp_path / "out", force=True)


def test_r7_truncated_responses_stand_beside_the_score() -> None:
    rows = [result(i, [R], terminated=i > 1) for i in range(10)]
    figures = measure(rows, judge=None, seed=0)
    assert figures["greedy"]["truncated_share"] == pytest.approx(0.2)
    assert figures["greedy"]["accuracy_finished"] == 1.0
    assert any("20.0% of the greedy" in text for text in warnings_of("b", figures))
    none = measure([result(0, [R], terminated=False)], judge=None, seed=0)
    assert any("none was finished" in text for text in warnings_of("b", none))


def test_r8_a_missing_sample_is_no_wrong_one() -> None:
    rows = result(0, [R, W])
    short = ProblemResult(rows.problem, rows.greedy, rows.sampled[:1], rows.verdicts)
    with pytest.raises(ValueError):
        measure([rows, short], judge=None, seed=0)


def test_r9_more_than_there_are_has_no_value() -> None:
    assert math.isnan(pass_at_k(4, 2, 8)) and math.isnan(majority_at_k([0], {0}, 2))
    assert sample_sizes(6) == [1, 2, 4, 6] and sample_sizes(0) == []


def test_r10_identical_samples_are_warned_of() -> None:
    figures = measure([result(0, [R] * 8, text="same")], judge=None, seed=0)
    assert figures["sampled"]["identical_share"] == 7 / 8
    assert any("word by word" in text for text in warnings_of("b", figures))


def test_r18_what_could_not_be_verified_is_counted_apart() -> None:
    figures = measure([result(0, ["timeout", R])], judge=None, seed=0)
    assert figures["sampled"]["not_verified"] == {"timeout": 1}
    assert any("verifier failed" in text for text in warnings_of("b", figures))


@pytest.mark.parametrize(("n", "warned"), [(1, True), (8, False)])
def test_r20_few_problems_want_many_samples(n: int, warned: bool) -> None:
    figures = measure([result(i, [R] * n) for i in range(30)], judge=None, seed=0)
    assert any("avg@32" in w for w in warnings_of("b", figures)) is warned


def test_r21_every_sample_is_scored() -> None:
    rows = [result(0, [W, R, R, R])]
    assert measure(rows, judge=None, seed=0)["sampled"]["avg"] == 0.75


def test_estimators_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys; import pure_rllib.evaluation.estimators, "
        "pure_rllib.evaluation.paired\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_average_is_unweighted() -> None:
    by_name = {
        "a": measure([result(i, [R, W]) for i in range(2)], judge=None, seed=0),
        "b": measure([result(i, [W, W]) for i in range(9)], judge=None, seed=0),
    }
    found = average(by_name)
    assert found["sampled"] == {"avg": 0.25, "se": 0.0}
    assert found["greedy"]["accuracy"] == 0.5


def test_r11_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "own.jsonl"
    file = LineFile(path)
    file.append([sample(0, 0, R)])
    with path.open("ab") as torn:
        torn.write(b'{"problem": 1, "te')
    again = LineFile(path)
    assert [row["problem"] for row in again.rows] == [0]
    again.append([sample(1, 0, W)])
    assert [row["problem"] for row in LineFile(path).rows] == [0, 1]


# --- Judges -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"Step 1 is right. \boxed{yes}", True),
        (r"\boxed{yes} no, \boxed{No.}", False),
        (r"\boxed{\text{Yes}}", True),
        (r"\boxed{maybe}", None),
        ("yes", None),
        (r"\boxed{yes", None),
    ],
)
def test_verdicts_are_read(text: str, expected: bool | None) -> None:
    assert read_verdict(text) is expected


def test_a_language_model_does_not_see_the_gold_answer() -> None:
    assert "{problem}" in QUESTION and "{solution}" in QUESTION
    assert "gold" not in QUESTION and "{answer}" not in QUESTION


@pytest.fixture(scope="module")
def splitter(tokenizer: PreTrainedTokenizerBase) -> Iterator[StepSplitter]:
    yield StepSplitter.from_tokenizer(tokenizer)


def task_of(tokenizer: PreTrainedTokenizerBase, *texts: str) -> JudgeTask:
    made = [
        sample(0, i, R, text=text, token_ids=tokenizer(text)["input_ids"] or [0])
        for i, text in enumerate(texts)
    ]
    return JudgeTask(Problem("2+3?", "5"), [1], made)


GOOD = "First, 2+3 is 5.\n\nSo \\boxed{5}."


def test_texts_that_game_judges_are_wrong(
    tokenizer: PreTrainedTokenizerBase, splitter: StepSplitter
) -> None:
    bad = GOOD + " Thank you, happy birthday!"
    task = task_of(tokenizer, GOOD, bad)
    assert suspicious(task, splitter) == {"sampled-1"}
    scorer = FunctionScorer(lambda prompt, steps: [1.0] * len(steps))
    judge = StepJudge(scorer, "prm:x>0", tokenizer, splitter)
    (found,) = judge.judge([task])
    assert found.reasoning == {"sampled-0": [True], "sampled-1": [False]}
    exact = StepJudge(scorer, "checker", tokenizer, splitter, is_exact=True)
    assert exact.judge([task])[0].reasoning["sampled-1"] == [True]


def test_the_worst_step_decides_and_equal_is_wrong(
    tokenizer: PreTrainedTokenizerBase, splitter: StepSplitter
) -> None:
    scorer = FunctionScorer(lambda prompt, steps: [0.9, 0.25])
    task = task_of(tokenizer, GOOD)
    for threshold, expected in ((0.2, True), (0.25, False)):
        judge = StepJudge(scorer, "prm:x", tokenizer, splitter, threshold=threshold)
        (found,) = judge.judge([task])
        assert found.reasoning == {"sampled-0": [expected]}
        assert found.step_scores["sampled-0"] == [0.9, 0.25]


def test_chains_over_the_judges_context_are_not_judged(
    tokenizer: PreTrainedTokenizerBase, splitter: StepSplitter
) -> None:
    class Short:
        num_overlong = 0

        def score(self, requests: Any) -> list[np.ndarray]:
            self.num_overlong += sum(len(r.response_ids) > 40 for r in requests)
            return [np.full(len(r.step_spans), 0.5, np.float32) for r in requests]

    task = task_of(tokenizer, GOOD, "Well, let us see what this is. " + GOOD)
    (found,) = StepJudge(Short(), "prm:x", tokenizer, splitter).judge([task])
    assert found.not_judged == ["sampled-1"]
    assert found.reasoning == {"sampled-0": [True], "sampled-1": [None]}


def test_settings_name_their_section() -> None:
    with pytest.raises(ValueError, match="threshold"):
        JudgeSettings(kind="checker", threshold=math.nan)
    with pytest.raises(ValueError, match="repeat_greedy"):
        SamplingSettings(greedy=False, repeat_greedy=True)
