"""Evaluations from end to end, with the embedded policy of chain arithmetic.

Tests are named by the required behaviours R1 ... of evaluations.
"""

import io
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import ray

from pure_rllib.algorithms import PUREConfig
from pure_rllib.cli.main import main
from pure_rllib.evaluation import Benchmark, Report, evaluate
from pure_rllib.evaluation.benchmarks import environment_benchmark
from pure_rllib.evaluation.engines import EnginePool, EngineSettings
from pure_rllib.evaluation.settings import PolicySettings
from pure_rllib.generation.base import Request, SamplingParams
from pure_rllib.models.loading import resolve_model
from tests.integration.conftest import NEEDS_VLLM, built

# Each starts engines, which takes seconds.
pytestmark = pytest.mark.slow
POLICY = "embedded:arithmetic-policy"
SAMPLING = {"samples": 4, "temperature": 1.0, "top_p": 1.0}
CHECKER = {"kind": "checker"}
FILES = [
    "evaluation.json",
    "problems.csv",
    "report.html",
    "samples.parquet",
    "samples/arithmetic.jsonl",
    "samples/arithmetic.verdicts.jsonl",
]


@pytest.fixture(autouse=True)
def cluster(ray_cluster: None) -> None:
    pass


def arithmetic(num_problems: int = 12) -> Benchmark:
    config = {"process_rewards": "none", "num_eval_problems": num_problems}
    return environment_benchmark("pure_rllib/Arithmetic-v0", config)


def run(out: Path, policy: dict[str, Any] | None = None, **kwargs: Any) -> Report:
    settings = {"model": POLICY, **(policy or {})}
    arguments = {"sampling": SAMPLING, "judge": CHECKER, **kwargs}
    return evaluate(
        settings, [arithmetic()], out=out, stream=io.StringIO(), **arguments
    )


def contents(folder: Path, names: Sequence[str] = FILES) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, Report]:
    """An evaluation that was never stopped."""
    folder = tmp_path_factory.mktemp("evaluation") / "whole"
    return folder, run(folder)


def samples_of(folder: Path) -> list[tuple[Any, ...]]:
    rows = pyarrow.parquet.read_table(folder / "samples.parquet").to_pylist()
    names = ("problem_id", "decoding", "sample", "token_ids", "outcome")
    return [tuple(str(row[name]) for name in names) for row in rows]


def test_figures_and_files(whole: tuple[Path, Report]) -> None:
    folder, report = whole
    figures = report.metrics["arithmetic"]
    sampled = figures["sampled"]
    assert figures["num_problems"] == 12 and sampled["num_samples"] == 4
    assert sampled["pass_at_k"]["1"]["mean"] == pytest.approx(sampled["avg"])
    assert list(sampled["pass_at_k"]) == ["1", "2", "4"]
    cot = figures["cot"]
    assert cot["name"] == "cot_pass@4[checker]"
    for k, row in cot["cot_pass_at_k"]["majority"].items():
        assert row["mean"] <= sampled["pass_at_k"][k]["mean"]  # R16 likewise
    shares = [v for k, v in sampled.items() if k.endswith("_share")]
    assert all(0 <= share <= 1 for share in shares)
    assert "cot_pass@n[checker]" in report.table()
    rows = pyarrow.parquet.read_table(folder / "samples.parquet").to_pylist()
    assert len(rows) == 12 * 5
    right = [row for row in rows if row["outcome"] == "correct"]
    assert right and all(len(row["verdicts"]) == 1 for row in right)
    assert (folder / "pass_at_k.png").stat().st_size > 10_000
    lines = (folder / "problems.csv").read_text().splitlines()
    assert lines[0] == "benchmark,problem_id,greedy,n,c,d,prompt" and len(lines) == 13


def test_r1_a_response_depends_on_nothing_else(
    whole: tuple[Path, Report], tmp_path: Path
) -> None:
    expected = samples_of(whole[0])
    for batch, engines in ((1, 2), (16, 1)):
        folder = tmp_path / f"{batch}-{engines}"
        kwargs = {"max_batch_size": batch}
        run(folder, {"engines": engines, "generator_kwargs": kwargs}, judge=None)
        assert samples_of(folder) == expected


def test_r10_samples_have_seeds_of_their_own(whole: tuple[Path, Report]) -> None:
    rows = pyarrow.parquet.read_table(whole[0] / "samples.parquet").to_pylist()
    seeds = [row["seed"] for row in rows if row["decoding"] == "sampled"]
    assert len(set(seeds)) == len(seeds) == 48


@pytest.mark.parametrize("seed", range(3))
def test_r11_stopped_anywhere_and_resumed_writes_the_same(
    whole: tuple[Path, Report], tmp_path: Path, seed: int
) -> None:
    """As a kill leaves it: each file has a beginning of what it was to hold."""
    folder, chance = tmp_path / "cut", random.Random(seed)
    (folder / "samples").mkdir(parents=True)
    (folder / "settings.json").write_bytes((whole[0] / "settings.json").read_bytes())
    for name in FILES[-2:]:
        lines = (whole[0] / name).read_bytes().splitlines(keepends=True)
        chance.shuffle(lines)
        if name == FILES[-2]:
            data = b"".join(lines)
            kept = data[: chance.randrange(len(data))]
            done = {json.loads(line)["problem"] for line in kept.split(b"\n")[:-1]}
        else:  # no problem is judged before its samples are there
            kept = b"".join(lines[: len(done) // 4])
        (folder / name).write_bytes(kept)
    run(folder, {"engines": 1 + seed % 2}, resume=True)
    assert contents(folder) == contents(whole[0])


def test_r11_killed_and_resumed_writes_the_same(
    whole: tuple[Path, Report], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "pure_rllib.cli", "eval"]
    new = [
        *[POLICY, "--env", "pure_rllib/Arithmetic-v0", "--judge", "checker"],
        *["--set", "env_config={process_rewards: none, num_eval_problems: 12}"],
        *["--set", "sampling={samples: 16, temperature: 1.0, top_p: 1.0}"],
        *["--set", "policy.generator_kwargs.max_batch_size=4", "--out", str(folder)],
    ]
    chance, samples = random.Random(0), folder / "samples" / "arithmetic.jsonl"
    words, num_killed = new, 0
    for _ in range(2):
        size = samples.stat().st_size if samples.exists() else 0
        process = subprocess.Popen([*command, *words], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        # Once it has begun to write, at any moment.
        while process.poll() is None and time.monotonic() < deadline:
            if samples.exists() and samples.stat().st_size > size:
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        num_killed += process.wait() == -signal.SIGKILL
        words = ["--resume", str(folder)]
    assert num_killed, "it was done before it could be killed"
    assert main(["eval", "--resume", str(folder)]) == 0
    expected = tmp_path / "whole"
    batch = {"generator_kwargs": {"max_batch_size": 4}}
    run(expected, batch, sampling={**SAMPLING, "samples": 16})
    names = [name for name in FILES if name != "evaluation.json"]
    assert contents(folder, names) == contents(expected, names)
    ours, other = (
        json.loads((f / "evaluation.json").read_text()) for f in (folder, expected)
    )
    assert ours == other


def test_r12_other_settings_are_refused_by_name(
    whole: tuple[Path, Report], tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sampling": {**SAMPLING, "temperature": 0.5}}, "sampling.temperature: 1.0"),
        ({"sampling": {**SAMPLING, "samples": 2}}, "sampling.samples: 4 -> 2"),
        ({"judge": None}, "judge"),
        ({"policy": {"model": "embedded:arithmetic-y-policy"}}, "hashes.weights"),
        ({"limit": 3}, "data_sha256"),
    ]
    for changes, named in cases:
        with pytest.raises(ValueError, match="must not change") as refused:
            run(whole[0], **changes, resume=True)
        assert named in str(refused.value)
    with pytest.raises(ValueError, match="--resume"):
        run(whole[0])


def test_an_engine_that_is_killed_loses_no_sample() -> None:
    folder = resolve_model(POLICY)
    settings = EngineSettings(
        policy=PolicySettings(model=folder, generator_kwargs={"max_batch_size": 2}),
        pad_token_id=0,
        eos_token_ids=[1],
        max_model_len=64,
    )
    params = SamplingParams(40, 1.0)
    blocks = [
        [Request([5, 6, 7], params, 2 * i), Request([5, 6], params, 2 * i + 1)]
        for i in range(60)
    ]

    def sampled(
        num_engines: int, disturb: Callable[[EnginePool], None]
    ) -> dict[int, list[int]]:
        pool, found = EnginePool(settings, num_engines), {}
        try:
            for finished in pool.sample(blocks):
                for one in finished:
                    assert one.number not in found, "given twice"
                    found[one.number] = one.token_ids.tolist()
                disturb(pool)
        finally:
            pool.stop()
        return found

    killed: list[Any] = []

    def kill_once(pool: EnginePool) -> None:
        if not killed:
            killed.append(pool._actors[1])
            ray.kill(killed[0])

    disturbed = sampled(2, kill_once)
    assert killed and sorted(disturbed) == list(range(120))
    assert disturbed == sampled(1, lambda pool: None)


def test_training_evaluates_by_the_same_samples(tmp_path: Path) -> None:
    config = (
        PUREConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={"process_rewards": "none", "num_eval_problems": 12},
        )
        .env_runners(num_env_runners=0)
        .training(process_reward_coeff=0.0)
        .evaluation(evaluation_duration=12, num_samples_per_problem=4)
        .debugging(seed=3)
    )
    with built(config) as algo:
        ours = algo.evaluate()
    sampling = {**SAMPLING, "seed": 3}
    figures = run(tmp_path / "a", sampling=sampling).metrics["arithmetic"]
    assert ours["greedy_accuracy"] == figures["greedy"]["accuracy"]
    assert ours["sampled_accuracy_low"] == pytest.approx(figures["sampled"]["low"])
    assert ours["sampled_accuracy"] == pytest.approx(figures["sampled"]["avg"])
    assert ours["pass_at_n"] == pytest.approx(
        figures["sampled"]["pass_at_k"]["4"]["mean"]
    )


def test_a_prm_judges_and_is_warned_of(tmp_path: Path) -> None:
    """R11's rule as well: a judge in an actor writes the same in another order."""
    benchmark = environment_benchmark(
        "pure_rllib/Arithmetic-v0", {"num_eval_problems": 6}
    )
    judge = {"kind": "prm", "model": "embedded:arithmetic-prm"}
    report = evaluate(
        POLICY, [benchmark], SAMPLING, judge, out=tmp_path / "a", stream=io.StringIO()
    )
    cot = report.metrics["arithmetic"]["cot"]
    assert cot["name"] == "cot_pass@4[prm:arithmetic-prm>0]"
    assert any("process rewards in training" in text for text in report.warnings)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "right answer, wrong step" in page


def test_a_language_model_judges_by_several_verdicts(tmp_path: Path) -> None:
    judge = {
        "kind": "lm",
        "model": POLICY,
        "verdicts": 3,
        "max_verdict_tokens": 8,
    }
    report = run(tmp_path / "a", judge=judge, limit=4)
    cot = report.metrics["arithmetic"]["cot"]
    assert cot["judge"] == "lm:arithmetic-policy"
    # This one writes no verdict, and none is no yes.
    assert cot["cot_pass_at_k"]["any"]["4"]["mean"] == 0.0
    assert cot["num_not_judged"] + cot["num_unreadable"] > 0
    assert any("the policy itself" in text for text in report.warnings)


def test_compare(tmp_path: Path, whole: tuple[Path, Report], capsys: Any) -> None:
    other = tmp_path / "other"
    run(other, {"model": "embedded:arithmetic-sparse-policy"}, judge=CHECKER)
    out = tmp_path / "comparison"
    words = ["eval", "--compare", f"first={whole[0]}", f"second={other}"]
    assert main([*words, "--out", str(out)]) == 0
    found = json.loads((out / "comparison.json").read_text())
    row = found["comparisons"]["second - first"]["arithmetic"]
    assert row["greedy"]["p_holm"] == row["greedy"]["p"]
    assert row["sampled"]["difference"] < 0
    shown = capsys.readouterr().out
    assert "sign flips" in shown and "k=4" in shown
    curves = found["policies"]["first"]["arithmetic"]
    assert (
        list(curves) == ["pass@k", "cot_pass@k"] and list(curves["pass@k"])[-1] == "4"
    )
    assert (out / "pass_at_k.png").stat().st_size > 10_000
    unequal = tmp_path / "unequal"
    run(unequal, sampling={**SAMPLING, "temperature": 0.5})
    assert main(["eval", "--compare", str(whole[0]), str(unequal)]) == 2
    assert "sampling.temperature: 1.0 -> 0.5" in capsys.readouterr().err
    fewer = tmp_path / "fewer"
    run(fewer, limit=3)
    assert main(["eval", "--compare", str(whole[0]), str(fewer), "--force"]) == 2
    assert "same problems of arithmetic" in capsys.readouterr().err


@NEEDS_VLLM
def test_vllm_samples_with_any_temperature_and_nucleus(tmp_path: Path) -> None:
    sampling = {"samples": 2, "temperature": 0.6, "top_p": 0.95, "repeat_greedy": True}
    report = run(
        tmp_path / "a", {"generator": "vllm", "dtype": "float32"}, sampling=sampling
    )
    figures = report.metrics["arithmetic"]
    assert "vllm" in report.figures["engines"][0]["versions"]  # R2
    assert figures["greedy"]["differed"] in range(13)
    transformers = run(tmp_path / "b", sampling=sampling).metrics["arithmetic"]
    assert figures["greedy"]["accuracy"] == transformers["greedy"]["accuracy"]
