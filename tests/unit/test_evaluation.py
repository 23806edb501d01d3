"""Evaluations before anything is sampled: cards, settings, checks.

Tests are named by the required behaviours R3 ... of evaluations.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from pure_rllib.arithmetic.task import TASK_Z, ArithmeticProblems
from pure_rllib.cli.evaluate import add_command, asked_for, benchmarks_of
from pure_rllib.data.problems import Problem
from pure_rllib.evaluation import Benchmark, evaluate, load_benchmark
from pure_rllib.evaluation.benchmarks import (
    CARDS,
    environment_benchmark,
    file_benchmark,
)
from pure_rllib.evaluation.plan import Plan, make_plan
from pure_rllib.evaluation.record import differences
from pure_rllib.evaluation.settings import (
    PolicySettings,
    SamplingSettings,
)
from pure_rllib.models.loading import resolve_model
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
    assert record["policy"]["dtype"] == "float32"  # the checkpoint's, by name
    assert json.loads(json.dumps(record)) == record


@pytest.mark.slow
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


@pytest.mark.slow
def test_stop_strings_are_the_engines_and_end_no_step_of_their_own(policy: str) -> None:
    plan = plan_of(policy, stop=["Q:"])
    assert plan.engine.stop is not None and plan.engine.stop.stop == ("Q:",)
    assert plan.record["sampling"]["stop"] == ["Q:"]
    ids = np.array(plan.tokenizer("1+1=2\n\nQ:")["input_ids"])
    assert len(plan.splitter.step_spans(ids)) == 1
    assert len(plan_of(policy).splitter.step_spans(ids)) == 2
    with pytest.raises(ValueError, match=r"`stop` .* can write"):
        plan_of(policy, stop=["\N{REPLACEMENT CHARACTER}"])


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
    plan = plan_of(policy, own("1", "t(0,4]", None))
    odd = plan.odd_golds["own"]
    assert [one["problem_id"] for one in odd] == ["1"]
    assert any("t(0,4]" in text for text in plan.warnings)
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
        ("POLICY --env {a} --set judge=checker", "`judge` ('checker') must be a map"),
        ("POLICY --set benchmarks=gsm8k", "`benchmarks` ('gsm8k') must be a list"),
        ("POLICY --env {a} --limit 0", "`limit` (0) must be >= 1"),
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
