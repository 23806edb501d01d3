"""PRM training on a tiny random model, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from pure_rllib.cli.main import main
from pure_rllib.prm_training.settings import PRMTrainingSettings, accumulation
from pure_rllib.prm_training.solutions import LabelledSolution
from pure_rllib.prm_training.trainer import (
    SETTINGS_FILE,
    read_base,
    train,
    training_rows,
)
from pure_rllib.prm_training.zero import check_agreement, read_deepspeed_config
from pure_rllib.testing import byte_tokenizer, tiny_model_config

SOLUTIONS = [
    LabelledSolution(f"{i}?", (f"{i}", "so", f"{i + i % 2}"), (True, None, i % 2 == 0))
    for i in range(24)
]


def write_policy(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    settings = tiny_model_config(len(tokenizer))
    settings.pop("model_type")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("models") / "policy")


def settings_for(policy: Path, **changes: Any) -> PRMTrainingSettings:
    small = PRMTrainingSettings(
        model=str(policy),
        head_lr=0.05,
        head_dropout=0.0,
        head_epochs=2,
        lr=1e-3,
        epochs=1,
        batch_size=8,
        micro_batch_size=4,
        log_every=1,
    )
    return replace(small, **changes)


def body(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {k: v for k, v in weights.items() if not k.startswith("score")}


def train_once(settings: PRMTrainingSettings, out: Path) -> dict[str, Any]:
    base = read_base(settings)
    rows, _ = training_rows(settings, base, SOLUTIONS)
    return train(settings, base, rows, out, report=lambda line: None)


def test_the_first_stage_trains_the_head_alone(policy: Path, tmp_path: Path):
    summary = train_once(settings_for(policy, epochs=0), tmp_path / "head")
    before, after = body(policy), body(tmp_path / "head")
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert list(summary["history"]) == ["head"]
    losses = [e["loss"] for e in summary["history"]["head"] if "loss" in e]
    # 24 rows in batches of 8, twice.
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


@pytest.mark.slow
def test_both_stages_go_on_from_each_other(policy: Path, tmp_path: Path):
    settings = settings_for(policy, loss="taylor", label_smoothing=0.1)
    lines: list[str] = []
    base = read_base(settings)
    rows, _ = training_rows(settings, base, SOLUTIONS)
    assert (len(rows.rows), rows.num_labels) == (24, 48)
    train(settings, base, rows, tmp_path, report=lines.append)
    assert [line.split()[0] for line in lines] == ["head"] * 6 + ["all"] * 3
    before, after = body(policy), body(tmp_path)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(changed) == len(after)
    stored = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert stored["settings"]["loss"] == "taylor"
    assert stored["format"] == "newline"
    # A PRM is a start as well: its head is kept.
    more = settings_for(tmp_path, head_epochs=0, lr=1e-9)
    assert read_base(more).is_prm
    train_once(more, tmp_path / "more")
    ours, theirs = (
        load_file(f / "model.safetensors")["score.weight"]
        for f in (tmp_path, tmp_path / "more")
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_micro_batches_do_not_change_the_updates(policy: Path, tmp_path: Path):
    """The loss is a mean over the labels of the whole batch, padded or not."""
    weights = []
    for size in (2, 8):
        settings = settings_for(policy, micro_batch_size=size, head_epochs=1, epochs=0)
        train_once(settings, tmp_path / str(size))
        file = tmp_path / str(size) / "model.safetensors"
        weights.append(load_file(file)["score.weight"])
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "`model`"),
        ({"lr": 0.0}, "`lr`"),
        ({"holdout": 1.0}, "`holdout`"),
        ({"head_epochs": 0, "epochs": 0}, "`epochs`"),
        ({"after_first_error": "cut"}, "`after_first_error`"),
        ({"loss": "focal"}, "`loss`"),
        ({"format": "math_shepherd"}, "`format`|single token|exactly one token"),
        ({"format": "extra_0"}, "`format`"),
        ({"model": "/nowhere/at/all"}, "`model`"),
    ],
)
def test_wrong_settings_are_refused_before_weights(
    changes: dict[str, Any], message: str, policy: Path
):
    with pytest.raises(ValueError, match=message):
        read_base(settings_for(policy, **changes))


def test_a_batch_is_a_whole_number_of_passes():
    settings = PRMTrainingSettings(model="m", batch_size=24, micro_batch_size=4)
    assert accumulation(settings, num_processes=3) == 2
    with pytest.raises(ValueError, match="--batch-size 20"):
        accumulation(settings, num_processes=5)


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: "), error
    return error


def test_the_command_refuses_mistakes(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "steps.jsonl"
    data.write_text('{"prompt": "p", "steps": ["a"], "labels": [true]}\n')
    words = ["prm-train", "--model", str(policy), "--data", str(data)]
    out = ["--out", str(tmp_path / "prm")]
    assert "`--out`" in run([*words, "--out", str(policy)], capsys)
    assert "`--deepspeed`" in run([*words, *out, "--deepspeed", "no.json"], capsys)
    assert "NAME=VALUE" in run([*words, *out, "--trainer", "bf16"], capsys)
    assert "set by lr" in run([*words, *out, "--trainer", "learning_rate=1"], capsys)
    assert "no such one" in run([*words, *out, "--trainer", "learning=1"], capsys)
    assert "`head_lr`" in run([*words, *out, "--head-lr", "-1"], capsys)
    assert "number or true" in run([*words, *out, "--trainer", "bf16=on it"], capsys)
    assert "TrainingArguments" in run([*words, *out, "--trainer", "optim=x"], capsys)
    assert "`lr_scheduler`" in run([*words, *out, "--lr-scheduler", "x"], capsys)
    assert "`holdout`" in run([*words, *out, "--holdout", "0.999999"], capsys)
    assert "`--data` (no.jsonl)" in run([*words[:-1], "no.jsonl", *out], capsys)
    assert "`--data`" in run([*words[:-1], str(tmp_path / "none"), *out], capsys)
    no_data = ["prm-train", "--model", str(policy), *out]
    assert "`--data` or `--rollouts`" in run(no_data, capsys)
    assert "`--rollouts`" in run([*no_data, "--rollouts", str(tmp_path)], capsys)
    assert "`--ensemble`" in run([*words, *out, "--ensemble", "0"], capsys)
    assert "`--labeller`" in run([*words, *out, "--labeller", "a:b"], capsys)
    assert not (tmp_path / "prm").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "be JSON"),
        ("{}", "zero_optimization"),
        ('{"zero_optimization": {"stage": 3}}', "16bit_weights_on_model_save to true"),
    ],
)
def test_deepspeed_configs_are_checked_before_the_model(
    config: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "zero.json"
    file.write_text(config)
    words = ["prm-train", "--model", "m", "--data", "d", "--out", str(tmp_path / "o")]
    error = run([*words, "--deepspeed", str(file)], capsys)
    assert error.startswith(f"error: `--deepspeed` ({file}) must")
    assert message in error


def test_numbers_of_a_deepspeed_config_must_agree(tmp_path: Path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make engines")
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 2}}')
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, max_grad_norm=0.5)
    config = HfTrainerDeepSpeedConfig(read_deepspeed_config(str(file)))
    config.trainer_config_process(arguments)
    check_agreement(str(file), config)
    # Clipping is filled in: DeepSpeed would not clip by itself.
    assert config.config["gradient_clipping"] == 0.5
    config = HfTrainerDeepSpeedConfig({"gradient_clipping": 7})
    config.trainer_config_process(arguments)
    with pytest.raises(ValueError, match=r'clipping=7 vs hf max_grad_norm=0.5.*"auto"'):
        check_agreement(str(file), config)


@pytest.mark.slow
def test_an_ensemble_is_several_prms(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, out = tmp_path / "steps.jsonl", tmp_path / "prms"
    row = {"prompt": "p", "steps": ["a", "b"], "labels": [True, False]}
    data.write_text((json.dumps(row) + "\n") * 4)
    words = ["prm-train", "--model", str(policy), "--data", str(data), "--out"]
    words += [str(out), "--ensemble", "2", "--batch-size", "2", "--seed", "5"]
    assert main([*words, "--micro-batch-size", "2", "--head-epochs", "1"]) == 0
    assert f"--prm {out / '0'} {out / '1'}" in capsys.readouterr().out
    settings, heads = [], []
    for k in "01":
        settings.append(json.loads((out / k / SETTINGS_FILE).read_text())["settings"])
        heads.append(load_file(out / k / "model.safetensors")["score.weight"])
    assert [s.pop("seed") for s in settings] == [5, 6]
    assert settings[0] == settings[1]
    assert not torch.equal(*heads)


def test_the_evaluation_refuses_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    steps = tmp_path / "steps.jsonl"
    steps.write_text('{"prompt": "p", "steps": ["a"], "labels": [true]}\n')
    words = ["prm-eval", "--prm", str(tmp_path)]
    assert "must be given" in run(words, capsys)
    assert "`--gate`" in run([*words, "--gate"], capsys)
    words += ["--steps", str(steps)]
    assert "`--threshold`" in run([*words, "--threshold", "2"], capsys)
    assert "`--limit`" in run([*words, "--limit", "0"], capsys)
    assert "--threshold-subset" in run([*words, "--threshold-subset", "x"], capsys)
    assert "`template`" in run([*words, "--template", "x"], capsys)
    assert "`prm`" in run(words, capsys)
    assert "`--steps` (no.jsonl)" in run([*words[:-1], "no.jsonl"], capsys)
    assert "`device` (gpu)" in run([*words, "--device", "gpu"], capsys)
    if not torch.cuda.is_available():
        assert "no GPU" in run([*words, "--device", "cuda"], capsys)


def test_a_policy_is_no_prm(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    steps = tmp_path / "steps.jsonl"
    steps.write_text('{"prompt": "p", "steps": ["a"], "labels": [true]}\n')
    words = ["prm-eval", "--prm", str(policy), "--steps", str(steps)]
    error = run([*words, "--prm-format", "newline"], capsys)
    assert "it is a Qwen2ForCausalLM, without labels" in error
    error = run([*words, "--prm-format", "extra_0"], capsys)
    assert "`prm_format` (extra_0, separator '<extra_0>')" in error
    # Unless it is asked as a causal model may be.
    asked = {"name": "math_shepherd", "separator": "\n", "verdicts": ["y", "n"]}
    assert main([*words, "--prm-format", json.dumps(asked)]) == 0
    assert "steps: 1, right 1.000" in capsys.readouterr().out
