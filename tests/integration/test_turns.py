"""Training over turns; the numbers are those of `tests/unit/test_turns.py`."""

import os
import random
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns

from pure_rllib.algorithms import GRPOConfig, LLMConfig, PUREConfig, RLOOConfig
from pure_rllib.data.problems import ListProblems, Problem
from pure_rllib.envs.guess_number import GuessNumber, GuessNumberEnv, guess_tokenizer
from pure_rllib.envs.text_token_env import TextTokenEnv
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.models import columns
from pure_rllib.rewards.base import FunctionVerifier
from pure_rllib.testing import tiny_model_config
from tests.integration.conftest import built, flat, stopping, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
POLICY = tiny_model_config(13, max_position_embeddings=32, initializer_range=0.2)


def config(made: LLMConfig, env: Any, env_config: dict[str, Any]) -> LLMConfig:
    return (
        made.environment(env, env_config=env_config)
        .env_runners(num_prompts=4, group_size=4)
        .rl_module(model_config={"model": POLICY})
        .training(lr=1.0e-2)
        .debugging(seed=3)
    )


def game(**env_config: Any) -> LLMConfig:
    made = PUREConfig().training(
        mask_separators=False, baseline="response", kl_coeff=0.1, entropy_coeff=0.1
    )
    return config(made, GuessNumberEnv, env_config)


class JunkOffTokens(LLMTorchLearner):
    """Fills whatever is no token of the policy with junk before it learns."""

    def _train_batch(self, episodes: Any) -> Any:
        batch = super()._train_batch(episodes)
        assert columns.ACTION_POSITIONS in batch
        off = ~columns.response_mask(batch)
        assert off.any()
        for name, column in batch.items():
            if getattr(column, "shape", None) == off.shape and name not in KEPT:
                batch[name] = column.masked_fill(off, 7)
        beyond = torch.arange(batch[columns.INPUT_IDS].shape[1])
        is_padding = beyond >= columns.row_lens(batch)[:, None]
        batch[columns.INPUT_IDS].masked_fill_(is_padding, 7)
        return batch


# Masks and positions stay what they are, and so do steps, of which there may be as many
# as tokens.
KEPT = {Columns.LOSS_MASK, columns.ACTION_POSITIONS}
KEPT |= {columns.STEP_REWARDS, columns.STEP_MASK, columns.STEP_ENDS}


def test_3_what_is_no_token_of_the_policy_changes_no_bit() -> None:
    trained = []
    for learner in (LLMTorchLearner, JunkOffTokens):
        made = game().training(rollout_correction="token_truncated")
        with built(made.training(learner_class=learner)) as algo:
            algo.train()
            result = flat(algo.train())
            names = ("loss/policy", "kl/reference", "loss/entropy", "mismatch/kl")
            figures = [result[name] for name in names]
            trained.append((figures, weights(algo)))
    (figures, first), (same_figures, second) = trained
    assert figures == same_figures and all(figures)
    assert all(np.array_equal(first[name], second[name]) for name in first)


class Asks:
    """Poses one of seven questions; the answer begins with the same token."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.question = str(1 + random.Random(seed).randrange(7))
        return self.question, {}

    def step(self, action: str) -> Any:
        return "", float(action.startswith(self.question)), True, False, {}


def test_5_one_turn_trains_as_a_single_response_does() -> None:
    settings: dict[str, Any] = {
        "tokenizer": guess_tokenizer(),
        "max_prompt_tokens": 1,
        "max_response_tokens": 3,
        # All of them, as a turn that does not end is not shown to its environment.
        "eos_token_ids": range(13),
    }
    text = {**settings, "make_env": Asks, "num_tasks": 20}
    tasks = TextTokenEnv(**text).problems
    prompts = [tasks[i].prompt for i in range(20)]
    single = {
        **settings,
        "problems": ListProblems([Problem(prompt, prompt) for prompt in prompts]),
        "verifier": FunctionVerifier(lambda gold, text: text.startswith(gold)),
    }
    trained = []
    for env, env_config in ((TextTokenEnv, text), (TokenEnv, single)):
        with built(config(GRPOConfig(), env, env_config)) as algo:
            rewards = [algo.train()["reward"]["verifiable"] for _ in range(3)]
            trained.append((rewards, weights(algo)))
    (rewards, first), (same_rewards, second) = trained
    assert rewards == same_rewards and any(0.0 < r < 1.0 for r in rewards)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_14_turns_and_what_is_said_between_them_are_metrics() -> None:
    with built(game()) as algo:
        result = flat(algo.train())
    turns, said = result["turns/mean"], result["turns/observation_tokens"]
    assert 1.0 < turns <= 3.0
    # Of one token each: a turn, and what is said between two.
    assert result["response/tokens"] == turns and said == turns - 1.0
    assert result["response/steps"] == turns
    assert result["env/errors"] == 0.0


@pytest.mark.parametrize("made", [GRPOConfig(), RLOOConfig()], ids=["GRPO", "RLOO"])
def test_algorithms_of_outcomes_play_the_same_game(made: LLMConfig) -> None:
    with built(config(made, GuessNumberEnv, {})) as algo:
        result = flat(algo.train())
    assert 1.0 < result["turns/mean"] <= 3.0 and 0.0 < result["accuracy"] < 1.0
    assert np.isfinite(result["loss/total"]) and result["gradient_norm"] > 0.0


class BreaksAtTimes(GuessNumber):
    """Raises in two of the first three games of each four, while there are any."""

    made = 0

    def step(self, action: str) -> Any:
        if not hasattr(self, "number_made"):
            type(self).made += 1
            self.number_made = type(self).made
        if self.number_made % 4 in (1, 2):
            raise OSError("the server is gone")
        return super().step(action)


@pytest.mark.parametrize("form", ["min", "sum"])
def test_10_groups_of_different_sizes_train(form: Any) -> None:
    made = config(
        PUREConfig().training(
            mask_separators=False, baseline="response", credit_assignment=form
        ),
        TextTokenEnv,
        {
            "make_env": BreaksAtTimes,
            "tokenizer": guess_tokenizer(),
            "turn_rewards": "process",
            "max_turns": 3,
            "max_prompt_tokens": 1,
            "max_response_tokens": 5,
            "eos_token_ids": range(13),
        },
    )
    BreaksAtTimes.made = 0
    with built(made) as algo:
        result = flat(algo.train())
    assert result["env/errors"] == 8.0
    assert result["env_runners/num_episodes"] == 8
    assert np.isfinite(result["loss/total"]) and result["gradient_norm"] > 0.0


def test_18_a_resumed_run_plays_the_same_tasks(tmp_path: Path) -> None:
    with built(game()) as algo:
        algo.train()
        saved = algo.save(str(tmp_path)).checkpoint.path
        expected = flat(algo.train())
    with stopping(Algorithm.from_checkpoint(saved)) as algo:
        found = flat(algo.train())
    for name in ("reward/process_mean", "turns/mean", "loss/policy", "reward/total"):
        assert found[name] == expected[name], name


class Watched(GuessNumber):
    """Notes in a folder when it begins and closes; the first that steps is killed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def reset(self, **kwargs: Any) -> Any:
        self._note("begun")
        return super().reset(**kwargs)

    def step(self, action: str) -> Any:
        with suppress(FileExistsError):
            (self.folder / "killed").touch(exist_ok=False)
            (self.folder / "killed").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

    def close(self) -> None:
        self._note("closed")

    def _note(self, what: str) -> None:
        with open(self.folder / f"{what}-{os.getpid()}", "a") as file:
            file.write(f"{id(self)}\n")


def test_15_a_lost_env_runner_costs_nothing_and_leaves_no_environment_open(
    tmp_path: Path,
) -> None:
    settings = {
        "make_env": partial(Watched, tmp_path),
        "tokenizer": guess_tokenizer(),
        "eos_token_ids": list(range(13)),
        "turn_rewards": "process",
        "max_turns": 3,
        "max_prompt_tokens": 1,
        "max_response_tokens": 5,
    }
    made = config(game(), TextTokenEnv, settings)
    made.env_runners(num_env_runners=2, num_cpus_per_env_runner=0.5)
    with built(made) as algo:
        result = flat(algo.train())
        assert result["groups/resampled"] == 2 and result["turns/mean"] > 1.0
        assert len(algo._last_batch.groups) == 4
    killed = (tmp_path / "killed").read_text()
    begun = [p for p in tmp_path.glob("begun-*") if not p.name.endswith(killed)]
    assert len(begun) >= 1
    for noted in begun:
        closed = tmp_path / noted.name.replace("begun", "closed")
        assert sorted(noted.read_text()) == sorted(closed.read_text())
