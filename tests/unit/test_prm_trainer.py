"""PRM training on a tiny random model, and what it refuses."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerControl, TrainerState
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from pure_rllib.cli.main import main
from pure_rllib.prm_training.arguments import PRMArgumentParser, PRMTrainingArguments
from pure_rllib.prm_training.progress import StageProgress
from pure_rllib.prm_training.solutions import LabelledSolution
from pure_rllib.prm_training.trainer import (
    SETTINGS_FILE,
    read_base,
    train,
    training_rows,
)
from pure_rllib.prm_training.zero import check_agreement, read_deepspeed_config
from pure_rllib.testing import byte_tokenizer, tiny_model_config
from tests.unit.conftest import Refused

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


def arguments_for(start: Path, out: Path, **changes: Any) -> PRMTrainingArguments:
    small: dict[str, Any] = {"head_lr": 0.05, "head_dropout": 0.0, "head_epochs": 2}
    small |= {"learning_rate": 1e-3, "num_train_epochs": 1, "logging_steps": 1}
    small |= {"batch_size": 8, "per_device_train_batch_size": 4}
    small |= {"model": str(start), "output_dir": str(out)}
    return PRMTrainingArguments(**small | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def train_once(model: Path, out: Path, **changes: Any) -> dict[str, Any]:
    arguments = arguments_for(model, out, **changes)
    base = read_base(arguments)
    rows, _ = training_rows(arguments, base, SOLUTIONS)
    assert (len(rows.rows), rows.num_labels) == (24, 48)
    return train(arguments, base, rows)


def test_the_first_stage_trains_the_head_alone(policy: Path, tmp_path: Path):
    summary = train_once(policy, tmp_path, num_train_epochs=0)
    before, after = weights(policy), weights(tmp_path)
    assert len(after) > len(before) - 1
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert list(summary["history"]) == ["head"]
    losses = [e["loss"] for e in summary["history"]["head"] if "loss" in e]
    # 24 rows in batches of 8, twice.
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


@pytest.mark.slow
def test_both_stages_go_on_from_each_other(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train_once(policy, tmp_path, loss="taylor", label_smoothing_factor=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["head"] * 6 + ["all"] * 3
    before, after = weights(policy), weights(tmp_path)
    assert not any(torch.equal(after[name], before[name]) for name in before)
    stored = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert stored["settings"]["loss"] == "taylor"
    assert stored["settings"]["label_smoothing"] == 0.1
    assert stored["format"] == "newline"
    # A PRM is a start as well: its head is kept.
    more = {"head_epochs": 0, "learning_rate": 1e-9}
    assert read_base(arguments_for(tmp_path, tmp_path, **more)).is_prm
    train_once(tmp_path, tmp_path / "more", **more)
    ours, theirs = (weights(f)["score.weight"] for f in (tmp_path, tmp_path / "more"))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_micro_batches_do_not_change_the_updates(policy: Path, tmp_path: Path):
    """The loss is a mean over the labels of the whole batch, padded or not."""
    heads = []
    for size in (2, 8):
        changes = {"per_device_train_batch_size": size, "head_epochs": 1}
        train_once(policy, tmp_path / str(size), num_train_epochs=0, **changes)
        heads.append(weights(tmp_path / str(size))["score.weight"])
    torch.testing.assert_close(*heads, atol=1e-5, rtol=1e-4)


def progress_of(stream: io.StringIO, interval_s: float) -> str:
    """What is written over two updates of two passes; the second is logged."""
    progress = StageProgress("head", stream=stream, interval_s=interval_s)
    state = TrainerState(max_steps=2)
    arguments = arguments_for(Path("m"), Path("o"))
    for event in ("train_begin", "substep_end", "step_end", "substep_end", "step_end"):
        state.global_step += event == "step_end"
        control = TrainerControl(should_log=state.global_step == 2)
        getattr(progress, f"on_{event}")(arguments, state, control)
    logs = {"loss": 0.5, "learning_rate": 1e-3, "grad_norm": 2.0}
    progress.on_log(arguments, state, control, logs)
    progress.on_train_end(arguments, state, control)
    return stream.getvalue()


def test_progress_is_written_by_time_too():
    logged = "head 2/2 | loss 0.5000 | lr 1.00e-03 | gradient norm 2.000"
    assert progress_of(io.StringIO(), 1000.0).splitlines() == [logged]
    *timed, last = progress_of(io.StringIO(), 0.0).splitlines()
    assert [line.partition(" of the next")[0] for line in timed] == [
        "head 0/2 | pass 1/2",
        "head 1/2 | pass 0/2",
        "head 1/2 | pass 1/2",
    ]
    assert timed[1].endswith("| 0:00:00 elapsed, 0:00:00 left")
    assert last == logged


@pytest.mark.slow
def test_a_pass_that_takes_long_is_seen_to_go_on():
    stream = io.StringIO()
    progress = StageProgress("all", stream=stream, interval_s=0.5)
    arguments = arguments_for(Path("m"), Path("o"))
    progress.on_train_begin(arguments, TrainerState(max_steps=2), TrainerControl())
    time.sleep(1.3)
    progress.close()
    (line,) = stream.getvalue().splitlines()
    assert line == "all  0/2 | pass 0/2 of the next | 0:00:01 elapsed, - left"


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    written = progress_of(Terminal(), 0.0)
    assert "pass 1/2" in written and "1/2 [" in written
    assert "elapsed" not in written
    [line] = [line for line in written.split("\r") if "loss" in line]
    assert line.endswith("gradient norm 2.000\n")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", "", "`model`"),
        ("model", "/nowhere/at/all", "`model`"),
        ("learning_rate", 0.0, r"`lr` \(0.0\).*set --lr 1e-06"),
        ("holdout", 1.0, "`holdout`"),
        ("after_first_error", "cut", "`after_first_error`"),
        ("neutral", "x", "`neutral`"),
        ("loss", "focal", "`loss`"),
        ("taylor_order", 0, "`taylor_order`"),
        ("label_smoothing_factor", 1.0, "`label_smoothing`"),
        ("batch_size", 18, r"`batch_size` \(18\).*--batch-size 16"),
        ("per_device_train_batch_size", 0, "`micro_batch_size`"),
        ("warmup_steps", 1, "`warmup`"),
        ("template", "x", "`template`"),
        ("format", "math_shepherd", "`format`|single token|exactly one token"),
        ("format", "extra_0", "`format`"),
    ],
)
def test_wrong_settings_are_refused_before_weights(
    name: str, value: Any, message: str, policy: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        read_base(arguments_for(policy, tmp_path, **{name: value}))


def test_something_must_be_trained(policy: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="`epochs`"):
        arguments_for(policy, tmp_path, head_epochs=0, num_train_epochs=0)


def test_a_batch_is_a_whole_number_of_passes():
    arguments = arguments_for(Path("m"), Path("o"), batch_size=24)
    assert arguments.passes_per_update(3) == 2
    with pytest.raises(ValueError, match="--batch-size 20"):
        arguments.passes_per_update(5)


def test_an_option_has_our_name_and_that_of_transformers():
    parser = PRMArgumentParser()
    words = ["--model", "m", "--out", "o", "--micro-batch-size", "8"]
    ours = ["--lr", "1e-3", "--warmup", "0.1", "--trainer", "bf16=true"]
    theirs = ["--learning-rate", "1e-3", "--warmup_steps", "0.1", "--bf16"]
    made = [
        parser.to_arguments(parser.parse_args([*words, *more]))
        for more in (ours, theirs)
    ]
    assert made[0].to_dict() == made[1].to_dict()
    assert (made[0].learning_rate, made[0].bf16) == (1e-3, True)
    assert made[0].settings["lr"] == 1e-3
    # The stages differ in what they are named for.
    stages = {
        name: (a.learning_rate, a.num_train_epochs) for name, a in made[0].stages()
    }
    assert stages == {"head": (1e-4, 3.0), "all": (1e-3, 1.0)}


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    file = tmp_path / "steps.jsonl"
    file.write_text('{"prompt": "p", "steps": ["a"], "labels": [true]}\n')
    return file


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--out", "{tmp}", "`--out`"),
        ("--deepspeed", "no.json", "`--deepspeed`"),
        ("--trainer", "bf16", "NAME=VALUE"),
        ("--trainer", "learning_rate=1", "set by lr"),
        ("--trainer", "gradient_accumulation_steps=1", "set by batch_size"),
        ("--trainer", "learning=1", "no such one"),
        ("--trainer", "bf16=on it", "number or true"),
        ("--trainer", "optim=x", "TrainingArguments"),
        ("--head-lr", "-1", "`head_lr`"),
        ("--lr-scheduler", "x", "`lr_scheduler`"),
        ("--holdout", "0.999999", "`holdout`"),
        ("--data", "no.jsonl", "`--data` (no.jsonl)"),
        ("--data", "{tmp}/none", "`--data`"),
        ("--rollouts", "{tmp}", "`--rollouts`"),
        ("--ensemble", "0", "`--ensemble`"),
        ("--labeller", "a:b", "`--labeller`"),
    ],
)
def test_the_command_refuses_mistakes(
    option: str, value: str, message: str, policy: Path, steps: Path, refused: Refused
):
    out = steps.parent / "prm"
    words = ["prm-train", "--model", policy, "--data", steps, "--out", out]
    assert message in refused(*words, option, value.format(tmp=steps.parent))
    assert not out.exists()


def test_data_must_be_given(policy: Path, tmp_path: Path, refused: Refused):
    error = refused("prm-train", "--model", policy, "--out", tmp_path / "prm")
    assert "`--data` or `--rollouts`" in error


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "be JSON"),
        ("{}", "zero_optimization"),
        ('{"zero_optimization": {"stage": 3}}', "16bit_weights_on_model_save to true"),
    ],
)
def test_deepspeed_configs_are_checked_before_the_model(
    config: str, message: str, tmp_path: Path, refused: Refused
):
    file = tmp_path / "zero.json"
    file.write_text(config)
    words = ["prm-train", "--model", "m", "--data", "d", "--out", tmp_path / "o"]
    error = refused(*words, "--deepspeed", file)
    assert error.startswith(f"error: `--deepspeed` ({file}) must")
    assert message in error


def test_numbers_of_a_deepspeed_config_must_agree(tmp_path: Path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make engines")
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 2}}')
    arguments = arguments_for(tmp_path, tmp_path, max_grad_norm=0.5)
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
    settings = [
        json.loads((out / k / SETTINGS_FILE).read_text())["settings"] for k in "01"
    ]
    assert [s.pop("seed") for s in settings] == [5, 6]
    assert settings[0] == settings[1]
    assert not torch.equal(*(weights(out / k)["score.weight"] for k in "01"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--threshold", "2", "`--threshold`"),
        ("--limit", "0", "`--limit`"),
        ("--threshold-subset", "x", "--threshold-subset"),
        ("--template", "x", "`template`"),
        ("--prm", "{tmp}", "`prm`"),
        ("--steps", "no.jsonl", "`--steps` (no.jsonl)"),
        ("--device", "gpu", "`device` (gpu)"),
        pytest.param(
            *("--device", "cuda", "no GPU"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_the_evaluation_refuses_mistakes(
    option: str, value: str, message: str, steps: Path, refused: Refused
):
    words = ["prm-eval", "--prm", steps.parent, "--steps", steps]
    assert message in refused(*words, option, value.format(tmp=steps.parent))


def test_the_evaluation_needs_something_to_measure_on(refused: Refused):
    assert "must be given" in refused("prm-eval", "--prm", "p")
    assert "`--gate`" in refused("prm-eval", "--prm", "p", "--gate")


def test_a_policy_is_no_prm(
    policy: Path, steps: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
):
    words = ["prm-eval", "--prm", str(policy), "--steps", str(steps), "--prm-format"]
    assert "it is a Qwen2ForCausalLM, without labels" in refused(*words, "newline")
    error = refused(*words, "extra_0")
    assert "`prm_format` (extra_0, separator '<extra_0>')" in error
    # Unless it is asked as a causal model may be.
    asked = {"name": "math_shepherd", "separator": "\n", "verdicts": ["y", "n"]}
    assert main([*words, json.dumps(asked)]) == 0
    assert "steps: 1, right 1.000" in capsys.readouterr().out
