"""Evaluations without engines: cards, checks before sampling, figures.

Tests are named by the required behaviours R3 ... of evaluations.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from pure_rllib.arithmetic.task import TASK_Z, ArithmeticProblems
from pure_rllib.cli.evaluate import add_command, asked_for, benchmarks_of
from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.problems import Problem
from pure_rllib.evaluation import Benchmark, evaluate, load_benchmark
from pure_rllib.evaluation.benchmarks import (
    CARDS,
    environment_benchmark,
    file_benchmark,
)
from pure_rllib.evaluation.estimators import majority_at_k, pass_at_k, sample_sizes
from pure_rllib.evaluation.judges import (
    QUESTION,
    JudgeTask,
    StepJudge,
    read_verdict,
    suspicious,
)
from pure_rllib.evaluation.measure import ProblemResult, average, measure, warnings_of
from pure_rllib.evaluation.plan import Plan, differences, make_plan
from pure_rllib.evaluation.samples import LineFile, ProblemVerdicts, Sample
from pure_rllib.evaluation.settings import (
    JudgeSettings,
    PolicySettings,
    SamplingSettings,
)
from pure_rllib.models.loading import resolve_model
from pure_rllib.rewards.base import FunctionScorer
from pure_rllib.rewards.verifier.math_verifier import MathVerifier
from pure_rllib.testing import byte_tokenizer, tiny_model_config
from tests.unit.conftest import Refused, SaveModel

ARITHMETIC = "embedded:arithmetic-policy"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def problems(*golds: str | None) -> list[Problem]:
    return [Problem(f"What is {i}?", gold, str(i)) for i, gold in enumerate(golds)]


def own(*golds: str | None, **kwargs: Any) -> Benchmark:
    return Benchmark(name="own", problems=problems(*golds), **kwargs)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.fixture
def policy(
    tmp_path: Path, save_model: SaveModel, tokenizer: PreTrainedTokenizerBase
) -> str:
    dots, pad = (tokenizer.convert_tokens_to_ids(t) for t in (".\n\n", "<pad>"))
    config = tiny_model_config(300, max_position_embeddings=512, eos_token_id=pad)
    folder = tmp_path / "policy"
    save_model(folder, config, tokenizer, AutoModelForCausalLM)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [dots], "temperature": 0.1, "top_k": 1})
    )
    return str(folder)


def plan_of(policy: str, *benchmarks: Benchmark, **sampling: Any) -> Plan:
    settings = {"max_response_tokens": 64, **sampling}
    return make_plan(
        PolicySettings(model=policy),
        benchmarks or [own("1", "2")],
        SamplingSettings(**settings),
        None,
    )


# --- Cards ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CARDS))
def test_r17_a_card_reads_its_file(name: str, shared_dir: Path) -> None:
    benchmark = load_benchmark(name, shared_dir / "data" / "eval")
    assert len(benchmark.problems) == CARDS[name].rows
    assert all(problem.answer for problem in benchmark.problems)
    assert not any("not the one" in note for note in benchmark.notes)
    ids = [problem.problem_id for problem in benchmark.problems]
    assert len(set(ids)) == len(ids) and set(benchmark.gold_fixes) <= set(ids)


def test_r14_r19_golds_are_read_as_the_cards_say(shared_dir: Path) -> None:
    golds = {
        name: [
            p.answer for p in load_benchmark(name, shared_dir / "data/eval").problems
        ]
        for name in CARDS
    }
    assert "033" in golds["aime24"]
    assert "27" in golds["amc23"] and "-1" in golds["amc23"]
    assert sum("." in str(gold) for gold in golds["amc23"]) == 0
    assert "4.5e33" in golds["minerva_math"] and len(golds["minerva_math"]) == 272
    assert not any("####" in str(gold) for gold in golds["gsm8k"])
    with MathVerifier() as verifier:
        found = verifier.verify(["033", "11"], [r"\boxed{33}", r"\boxed{711}"])
    assert [one.outcome for one in found] == ["correct", "incorrect"]


def test_an_unknown_benchmark_lists_the_known(refused: Refused) -> None:
    error = refused("eval", "MODEL", "--benchmarks", "aime", "--data-dir", "x")
    assert all(name in error for name in CARDS) and "prm-eval" in error


def test_a_file_that_differs_from_the_card_is_noted(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "2+3?", "answer": "#### 5"}\n')
    benchmark = load_benchmark("gsm8k", tmp_path)
    assert [p.answer for p in benchmark.problems] == ["5"]
    assert "1 problems in place of 1319" in benchmark.notes


def test_an_empty_file_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("")
    assert "0 rows" in refused("eval", ARITHMETIC, "--problems", path)


def test_own_files_have_names_and_fields(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "2+3?", "result": "5"}\n')
    fields = {"prompt_field": "text", "answer_field": "result"}
    made = file_benchmark({"source": str(path), "num_samples": 2, **fields})
    assert made.name == "mine" and made.num_samples == 2
    with pytest.raises(ValueError, match="source"):
        file_benchmark({"name": "x"})


# --- Before sampling --------------------------------------------------------------


def test_r3_every_setting_that_can_change_a_score_is_recorded(policy: str) -> None:
    record = plan_of(policy, own("1")).record
    asked = record["benchmarks"]["own"]
    assert asked["first_prompt"]["text"].startswith("What is 0?\n\nPlease reason")
    assert asked["first_prompt"]["ids"] and len(asked["data_sha256"]) == 64
    assert set(record["hashes"]) == {"weights", "tokenizer"}
    assert {"temperature", "top_p", "seed"} <= set(record["sampling"])
    assert json.loads(json.dumps(record)) == record


def test_r12_what_differs_is_named_and_engines_may(policy: str) -> None:
    record = plan_of(policy).record
    engines = make_plan(
        PolicySettings(model=policy, engines=3, num_cpus=2.0),
        [own("1", "2")],
        SamplingSettings(max_response_tokens=64),
        None,
    )
    assert differences(record, engines.record) == []
    other = plan_of(policy, own("1", "3"), temperature=1.0).record
    keys = [line.partition(":")[0] for line in differences(record, other)]
    assert keys == ["sampling.temperature", "benchmarks.own.data_sha256"]


@pytest.mark.parametrize("where", ["template", "system"])
def test_r4_marks_of_a_chat_stand_once(where: str, policy: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(policy)
    fields = {"chat": True, where: "<|im_start|>user\n{problem}"}
    if where == "system":
        fields[where] = "<|im_start|>system"
    with pytest.raises(ValueError, match=r"no marks of a chat \(<\|im_start\|>\)"):
        plan_of(policy, template=fields)
    ids = plan_of(policy, template={"chat": True}).asked[0].prompts[0]
    mark = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert list(ids).count(mark) == 2  # the user's and the assistant's


def test_r5_every_file_may_name_ends_and_none_how_to_sample(policy: str) -> None:
    plan = plan_of(policy, temperature=0.9)
    texts = plan.tokenizer.convert_ids_to_tokens(plan.eos_token_ids)
    assert set(texts) == {"<|endoftext|>", "<pad>", ".\n\n"}
    request = plan.asked[0].request(next(iter(plan.asked[0].keys)), plan.sampling)
    assert request.params.temperature == 0.0
    assert plan.sampling.temperature == 0.9 and plan.sampling.top_p == 0.95


def test_r6_a_budget_over_the_context_names_both_numbers(policy: str) -> None:
    with pytest.raises(ValueError, match=r"\(500\).*tokens\).*\(512\)"):
        plan_of(policy, max_response_tokens=500)
    plan = plan_of(policy, max_response_tokens=500, shorten_budget=True)
    (asked,) = plan.asked
    assert asked.budget(0) == 512 - len(asked.prompts[0])
    assert any("2 prompts leave less than 500" in text for text in plan.warnings)


def test_r17_golds_are_compared_with_themselves(policy: str) -> None:
    plan = plan_of(policy, own("1", r"np.arcsin(10/13)", None))
    odd = plan.odd_golds["own"]
    assert [one["problem_id"] for one in odd] == ["1"]
    assert any("np.arcsin" in text for text in plan.warnings)
    assert any("1 problems have no gold answer" in text for text in plan.warnings)


def test_r22_no_gold_at_all_is_an_error(policy: str) -> None:
    with pytest.raises(ValueError, match="must have gold answers"):
        plan_of(policy, own(None, None))


def test_r23_training_prompts_are_counted(policy: str) -> None:
    trained = frozenset({"What is 1?", "another"})
    plan = plan_of(policy, own("1", "2", training_prompts=trained))
    assert plan.record["benchmarks"]["own"]["num_training_prompts"] == 1
    assert any("1 of 2 problems are training prompts" in w for w in plan.warnings)


def test_an_environment_brings_prompts_budget_checker_and_prm() -> None:
    benchmark = environment_benchmark(
        "pure_rllib/Arithmetic-v0", {"num_eval_problems": 5}
    )
    assert benchmark.name == "arithmetic" and len(benchmark.problems) == 5
    assert benchmark.max_response_tokens == 80 and benchmark.step_checker is not None
    assert benchmark.training_prms == ("embedded:arithmetic-prm",)
    asked = {problem.prompt for problem in benchmark.problems}
    assert not asked & benchmark.training_prompts


@pytest.mark.parametrize(
    ("judge", "fragment"),
    [
        ({"kind": "checker"}, "has no exact checker"),
        ({"kind": "prm"}, "`judge.model` (None)"),
        ({"kind": "checker", "model": "x"}, "`judge.model` (x)"),
        ({"kind": "oracle"}, "kind"),
        ({"kind": "prm", "model": "no/such/folder"}, "no/such/folder"),
        ({"kind": "lm", "model": "x", "votes": 3}, "unknown key `votes`"),
    ],
)
def test_wrong_judges(
    judge: dict[str, Any], fragment: str, policy: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as refused:
        evaluate(
            policy,
            [own("1")],
            {"max_response_tokens": 8},
            judge,
            out=tmp_path / "out",
        )
    assert fragment in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("", "MODEL|RUN|FILE|NAME"),
        ("POLICY", "--benchmarks"),
        ("POLICY --env pure_rllib/No-v0", "pure_rllib/Arithmetic-v0"),
        ("POLICY --env {a} --set sampling.tempreature=1", "unknown key `tempreature`"),
        ("POLICY --env {a} --set sampling.temperature=0", "temperature"),
        ("POLICY --env {a} --set training.lr=1", "unknown section `training`"),
        ("POLICY --env {a} --set sampling.template=qwen2_5_math", "chat template"),
        ("POLICY --env {a} --set policy.generator=sglang", "generator"),
        ("POLICY --env {a} --set policy.generator_kwargs.x=1", "unknown keys ['x']"),
        ("POLICY --env {a} --samples 0 --set sampling.greedy=false", "samples"),
        ("no/such/folder --env {a}", "no/such/folder"),
        ("run --env {a}", "policy/"),
        ("train.yaml", "pure-rllib train train"),
        ("--resume none", "settings.json"),
        ("--resume none --out x", "without a policy"),
        ("--compare none none", "labels"),
        ("--compare a=none b=none", "evaluation.json"),
    ],
)
def test_mistakes_are_named(
    words: str,
    fragment: str,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.yaml").write_text("x: {run: PURE}\n")
    (tmp_path / "train.yaml").write_text("x: {run: PURE}\n")
    given = words.format(a="pure_rllib/Arithmetic-v0").replace("POLICY", ARITHMETIC)
    assert fragment in refused("eval", *given.split())


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a run whose policy is the embedded one."""
    folder = tmp_path / "trained"
    shutil.copytree(resolve_model(ARITHMETIC), folder / "policy")
    (folder / "experiment.yaml").write_text(
        "trained: {run: PURE, stop: {training_iteration: 1}, config: {environment: "
        "{env: pure_rllib/Arithmetic-v0, env_config: {num_eval_problems: 7}}, "
        "env_runners: {max_response_tokens: 33}}}\n"
    )
    return folder


def asked(*words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    spec, _ = asked_for(parser.parse_args(["eval", *map(str, words)]))
    return spec


def test_a_run_is_asked_what_it_held_out_as_it_was_trained(trained: Path) -> None:
    spec = asked(trained)
    assert spec["policy"] == {"model": str(trained / "policy")}
    (benchmark,) = benchmarks_of(spec)
    assert len(benchmark.problems) == 7 and benchmark.max_response_tokens == 33


def test_a_run_is_asked_other_problems_in_its_own_way(
    trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    known = ArithmeticProblems(TASK_Z, 1, 0)[0]
    path.write_text(json.dumps({"problem": known.prompt, "answer": known.answer}))
    spec = asked(trained, "--problems", path, "--set", "sampling.samples=2")
    (benchmark,) = benchmarks_of(spec)
    assert benchmark.name == "mine" and known.prompt in benchmark.training_prompts
    assert benchmark.training_prms == ("embedded:arithmetic-prm",)
    sampling = spec["sampling"]
    assert sampling["template"]["template"] == "{problem}" and sampling["samples"] == 2
    assert sampling["max_response_tokens"] == 33


def test_a_folder_with_anything_in_it_is_left_alone(
    tmp_path: Path, policy: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(ValueError, match="--resume"):
        evaluate(policy, [own("1")], out=tmp_path / "full")


# --- Samples and figures ----------------------------------------------------------


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
        problem_id=str(problem),
        prompt=f"problem {problem}",
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
    # d = 1 of 4: 1 - C(3,2) / C(4,2) = 1/2
    assert cot["cot_pass_at_k"]["majority"]["2"]["mean"] == 0.5


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
    short = ProblemResult("0", "p", rows.greedy, rows.sampled[:1], rows.verdicts)
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
    assert found.verdicts == {"sampled-0": [True], "sampled-1": [False]}
    exact = StepJudge(scorer, "checker", tokenizer, splitter, is_exact=True)
    assert exact.judge([task])[0].verdicts["sampled-1"] == [True]


def test_the_worst_step_decides_and_equal_is_wrong(
    tokenizer: PreTrainedTokenizerBase, splitter: StepSplitter
) -> None:
    scorer = FunctionScorer(lambda prompt, steps: [0.9, 0.25])
    task = task_of(tokenizer, GOOD)
    for threshold, expected in ((0.2, True), (0.25, False)):
        judge = StepJudge(scorer, "prm:x", tokenizer, splitter, threshold=threshold)
        (found,) = judge.judge([task])
        assert found.verdicts == {"sampled-0": [expected]}
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
    assert found.verdicts == {"sampled-0": [True], "sampled-1": [None]}


def test_settings_name_their_section() -> None:
    with pytest.raises(ValueError, match="threshold"):
        JudgeSettings(kind="checker", threshold=math.nan)
    with pytest.raises(ValueError, match="repeat_greedy"):
        SamplingSettings(greedy=False, repeat_greedy=True)
