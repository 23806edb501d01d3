"""`pure-rllib envs`: what is listed, and what is shown of one environment."""

from pathlib import Path

import pytest

from pure_rllib.cli import envs
from pure_rllib.cli.main import main
from pure_rllib.envs import ENV_IDS

EXPERIMENT = """
mine:
  run: GRPO
  stop: {training_iteration: 1}
  config:
    environment:
      env: pure_rllib/Arithmetic-v0
      env_config: {process_rewards: exact, max_response_tokens: 24}
"""


def test_every_environment_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 88 or "pip install" in lines[-1]
    assert set(ENV_IDS) <= {line.split()[0] for line in lines if line}
    assert all(
        len(line.split()) > 2 for line in lines if line.startswith("pure_rllib/")
    )


def test_without_reasoning_gym_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(envs, "find_spec", lambda name: None)
    assert list(envs.listing())[-1].endswith("pip install 'pure-rllib[reasoning-gym]'")


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "id"])
def test_problems_prompts_and_random_rewards_are_shown(
    is_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT)
    changes = ["process_rewards=exact", "max_response_tokens=24"]
    words = [str(path)] if is_file else ["Arithmetic-v0"]
    words += [] if is_file else [w for c in changes for w in ("--set", c)]
    assert main(["envs", *words, "--show", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pure_rllib/Arithmetic-v0\n10000 problems\n")
    assert out.count("\nproblem ") == out.count("  random tokens earn verifiable") == 2
    assert "answer 0\n  | 5+4+4-2-1=?\n" in out
    assert "(at most 0), process rewards -" in out


def test_a_tuned_example_is_shown_by_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["envs", "guess_number"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pure_rllib/GuessNumber-v0\n") and "answer" not in out
    assert "\n  | ?\n  random tokens earn verifiable reward" in out


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["Arithmetik-v0"], "ours are pure_rllib/Math-v0"),
        (["Math-v0"], "`problems` (not given) must be set for pure_rllib/Math-v0"),
        (["Arithmetic-v0", "--show", "0"], "`--show` (0) must be >= 1"),
        (["Arithmetic-v0", "--set", "task=q"], '`task` ("q") must be one of'),
        (["nothing.yaml"], "nothing.yaml"),
    ],
)
def test_a_wrong_name_or_argument_is_an_error(
    words: list[str], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envs", *words]) == 2
    assert fragment in capsys.readouterr().err


@pytest.mark.slow
def test_a_task_of_reasoning_gym_is_shown_in_a_chat(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(
        "reasoning_gym", reason="reasoning-gym is absent: its tasks were not shown"
    )
    assert main(["envs", "leg_counting"]) == 0
    out = capsys.readouterr().out
    assert "<answer> </answer>.<|im_end|>\n  | <|im_start|>assistant" in out
    assert "random tokens earn verifiable reward 0.00 (at most 0)" in out
