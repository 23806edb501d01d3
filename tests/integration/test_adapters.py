"""Environments of other packages, played by the real package where it is installed."""

import importlib
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from pure_rllib.algorithms import GRPOConfig
from pure_rllib.envs.adapters import text_game
from pure_rllib.envs.adapters.gymnasium import GemEnv, GymnasiumEnv
from pure_rllib.envs.adapters.openenv import OpenEnv
from pure_rllib.envs.adapters.text_game import OwnRandomState
from pure_rllib.envs.adapters.textarena import TextArenaEnv
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.testing import byte_tokenizer, tiny_model_config
from tests.integration.conftest import built

TOKENIZER = byte_tokenizer()


class Parrot(gym.Env[str, str]):
    """Wants to hear its word, and says it again until it does."""

    observation_space = spaces.Text(20)
    action_space = spaces.Text(20)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = "ab"[int(self.np_random.integers(2))]
        return f"say {self.word}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        is_right = action == self.word
        return f"no, {self.word}", 3.0 if is_right else -1.0, is_right, False, {}


gym.register("Parrot-v0", entry_point=f"{__name__}:Parrot", max_episode_steps=4)


def play(env: TextTokenEnv, *turns: str, task: int = 0) -> tuple[str, dict[str, Any]]:
    """Plays turns; returns all that was written, and the last information."""
    env.reset(options={"problem": env.problems[task]})
    for turn in turns:
        for token in [*TOKENIZER.encode(turn), TOKENIZER.eos_token_id]:
            _, _, terminated, truncated, info = env.step(token)
            if terminated or truncated:
                break
    env.render_mode = "ansi"
    return str(env.render()), info


def parrot(**kwargs: Any) -> GymnasiumEnv:
    sizes: dict[str, Any] = {"max_prompt_tokens": 8, "max_response_tokens": 40}
    chosen = {"returns": (-4.0, 3.0), "tokenizer": TOKENIZER, **sizes, **kwargs}
    return GymnasiumEnv(game="Parrot-v0", **chosen)


def test_a_gymnasium_environment_of_text_is_played_over_turns() -> None:
    env = parrot()
    word = env.problems[0].prompt[-1]
    written, info = play(env, "x", word)
    assert f"no, {word}{word}" in written
    # The sum 2 of -1 and 3 between -4 and 3.
    assert info["verifiable_reward"] == pytest.approx(6 / 7)
    _, info = play(env, *"xxxx")
    assert info["verifiable_reward"] == 0.0
    check_env(env, skip_render_check=True)


def test_the_tokenizer_of_a_game_may_be_a_folder(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    assert len(parrot(tokenizer=str(tmp_path)).tokenizer) == len(TOKENIZER)
    with pytest.raises(ValueError, match="must be a folder with a tokenizer's files"):
        parrot(tokenizer=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("kwargs", "fragment"),
    [
        ({"game": "Parot-v0"}, "near it are Parrot-v0"),
        ({"game": "CartPole-v1"}, "is no text"),
        ({"game": "no_module:Game-v0"}, "No module named 'no_module'"),
        ({"game": "Parrot-v0", "returns": [1, 1]}, "must be two rising numbers"),
        ({"game": "Parrot-v0", "game_kwargs": {"size": 3}}, "size"),
    ],
)
def test_a_game_that_cannot_be_played_is_named(
    kwargs: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(ValueError) as error:
        GymnasiumEnv(tokenizer=TOKENIZER, **kwargs)
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (lambda: GemEnv(game="game:x", tokenizer=TOKENIZER), "gem"),
        (lambda: TextArenaEnv(game="x", tokenizer=TOKENIZER), "textarena"),
    ],
)
def test_the_extra_of_a_package_that_is_absent_is_named(
    make: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(text_game, "import_module", absent)
    with pytest.raises(ValueError, match=rf"pip install 'pure-rllib\[{extra}\]'"):
        make()


def test_no_server_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="must be that of a running server of OpenEnv"):
        OpenEnv(url="http://localhost:9", tokenizer=TOKENIZER)


def test_games_that_share_the_global_generator_do_not_change_each_other() -> None:
    def drawn(state: OwnRandomState, seed: int | None = None) -> float:
        with state():
            if seed is not None:
                random.seed(seed)
            return random.random()

    one, other = OwnRandomState(), OwnRandomState()
    random.seed("outside")
    expected_outside = random.random()
    random.seed("outside")
    found = [drawn(one, 1), drawn(other, 2), drawn(one), drawn(other), drawn(one)]
    alone = random.Random(1)
    assert found[::2] == [alone.random() for _ in range(3)]
    assert random.random() == expected_outside


@pytest.mark.slow
def test_an_adapted_environment_trains(ray_cluster: None) -> None:
    env_config = {
        "game": "tests.integration.test_adapters:Parrot-v0",
        "tokenizer": TOKENIZER,
        "returns": [-4.0, 3.0],
        "max_turn_tokens": 4,
        "max_prompt_tokens": 8,
        "max_response_tokens": 40,
    }
    config = (
        GRPOConfig()
        .environment("pure_rllib/Gymnasium-v0", env_config=env_config)
        .env_runners(num_env_runners=0, num_prompts=2, group_size=4)
        .rl_module(model_config={"model": tiny_model_config(261)})
    )
    with built(config) as algo:
        result = algo.train()
    assert result["env"]["errors"] == 0
    assert 1.0 <= result["turns"]["mean"] <= 4.0


def package(name: str) -> Any:
    return pytest.importorskip(
        name, reason=f"{name} is absent: none of its games was played"
    )


def test_a_game_of_gem_is_played() -> None:
    package("gem")
    sizes: dict[str, Any] = {"max_prompt_tokens": 1024, "max_response_tokens": 1024}
    game = "game:GuessTheNumber-v0-easy"
    env = GemEnv(game=game, tokenizer=TOKENIZER, **sizes)
    written, info = play(env, r"\boxed{5}", "no box")
    assert "At turn 1, you guessed 5" in written
    assert info["verifiable_reward"] == 0.0, "its punishment is not below nothing"
    ends = [play(env, rf"\boxed{{{number}}}")[1] for number in range(1, 11)]
    won = [info.get("verifiable_reward") for info in ends]
    assert won.count(1.0) == 1, "the number of a task changes"
    with pytest.raises(ValueError, match="near it are game:GuessTheNumber"):
        GemEnv(game="game:GuessTheNumbr-v0-easy", tokenizer=TOKENIZER)


def test_a_game_of_textarena_is_played() -> None:
    package("textarena")
    sizes: dict[str, Any] = {"max_prompt_tokens": 1024, "max_response_tokens": 2048}
    env = TextArenaEnv(game="GuessTheNumber-v0", tokenizer=TOKENIZER, **sizes)
    written, info = play(env, "[10]", "nothing", "nothing")
    assert written.count("[10]") == 1, "it repeats what was said"
    assert "The target number is" in written and "invalid move" in written
    assert info["verifiable_reward"] == 0.0, "giving up pays"
    won = [play(env, f"[{n}]")[1].get("verifiable_reward") for n in range(1, 21)]
    assert won.count(1.0) == 1, "the number of a task changes"
    with pytest.raises(ValueError, match="must start with a text for one player"):
        TextArenaEnv(game="TicTacToe-v0", tokenizer=TOKENIZER)


@pytest.fixture
def echo_server(tmp_path: Path) -> Iterator[str]:
    """A server of OpenEnv's own example, as `openenv init` makes it."""
    package("openenv")
    root = Path(importlib.import_module("openenv").__file__ or "").parent
    template = root / "cli/templates/openenv_env"
    folder = tmp_path / "echo_env"
    shutil.copytree(template, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in list(folder.rglob("*.py")):
        text = path.read_text().replace("__ENV_CLASS_NAME__", "Echo")
        text = text.replace("__ENV_NAME__", "echo").replace(
            "concurrent_envs=1", "concurrent_envs=8"
        )
        path.rename(path.with_name(path.name.replace("__ENV_NAME__", "echo")))
        path.with_name(path.name.replace("__ENV_NAME__", "echo")).write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "server.app:app", "--port", str(port)]
    server = subprocess.Popen([*command, "--log-level", "warning"], cwd=folder)
    try:
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline and server.poll() is None:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_server_of_openenv_is_played(echo_server: str) -> None:
    sizes: dict[str, Any] = {"max_prompt_tokens": 64, "max_response_tokens": 64}
    env = OpenEnv(url=echo_server, tokenizer=TOKENIZER, max_turns=2, **sizes)
    assert env.problems[0].prompt.endswith("environment ready!")
    written, info = play(env, "hi", "you!")
    assert "hi<|endoftext|>hiyou!" in written
    # A tenth for each letter.
    assert info["verifiable_reward"] == pytest.approx(0.6)
    env.close()
    with pytest.raises(ValueError, match="`to_action`"):
        OpenEnv(url=echo_server, to_action="no_module:f", tokenizer=TOKENIZER)
