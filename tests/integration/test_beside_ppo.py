"""What RLlib's own PPO answers, our algorithms answer; both are asked the same."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.test_utils import check_train_results_new_api_stack

from pure_rllib.algorithms import PUREConfig
from tests.integration.conftest import TINY_POLICY, built, flat

# Both are built, trained and evaluated before the first question.
pytestmark = pytest.mark.slow
ARITHMETIC: dict[str, Any] = {
    "process_rewards": "exact",
    "max_response_tokens": 16,
    "num_eval_problems": 4,
}


class Run(NamedTuple):
    """An algorithm after its second iteration, and what it was made of."""

    config: AlgorithmConfig
    algo: Algorithm
    result: dict[str, Any]
    env: Any


def ppo_config() -> PPOConfig:
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
        .training(grad_clip=1.0)
        .evaluation(evaluation_interval=1, evaluation_duration=2)
        .debugging(seed=0)
    )


def our_config() -> PUREConfig:
    return (
        PUREConfig()
        .environment("pure_rllib/Arithmetic-v0", env_config=ARITHMETIC)
        .env_runners(num_prompts=2, group_size=4)
        .training(lr=1e-2, minibatch_size=4)
        .rl_module(model_config={"model": TINY_POLICY})
        .evaluation(evaluation_interval=1, num_samples_per_problem=1)
        .debugging(seed=0)
    )


@pytest.fixture(scope="module")
def runs(ray_cluster: None) -> Iterator[dict[str, Run]]:
    configs = {
        "PPO": (ppo_config(), gym.make("CartPole-v1")),
        # As many actions as the policy has tokens, which are more than the tokenizer's.
        "ours": (
            our_config(),
            gym.make(
                "pure_rllib/Arithmetic-v0",
                vocab_size=TINY_POLICY["vocab_size"],
                **ARITHMETIC,
            ),
        ),
    }
    with ExitStack() as stack:
        made = {}
        for name, (config, env) in configs.items():
            algo = stack.enter_context(built(config))
            algo.train()
            made[name] = Run(config, algo, algo.train(), env)
        yield made


def action_inputs(run: Run) -> tuple[int, ...]:
    """The shape of what a module says about a batch of two observations."""
    observations = [run.env.reset(seed=seed)[0] for seed in (0, 1)]
    batch = torch.utils.data.default_collate(observations)
    module = run.algo.get_module()
    output = module.forward_inference({Columns.OBS: batch})
    inputs = output[Columns.ACTION_DIST_INPUTS]
    actions = module.get_inference_action_dist_cls().from_logits(inputs).sample()
    assert all(run.env.action_space.contains(int(action)) for action in actions)
    assert inputs.shape == (2, run.env.action_space.n)
    return tuple(inputs.shape[:1])


def restored(run: Run, path: Path) -> int:
    saved = run.algo.save_to_path(path)
    algo = type(run.algo).from_checkpoint(saved)
    try:
        return int(algo.iteration)
    finally:
        algo.stop()


def set_weights_back(run: Run) -> int:
    weights = run.algo.get_weights()
    run.algo.set_state({"learner_group": {"learner": {"rl_module": weights}}})
    return len(weights)


def sampled(run: Run, **arguments: Any) -> set[type]:
    episodes = run.algo.env_runner.sample(**arguments)
    assert all(isinstance(e, SingleAgentEpisode) for e in episodes)
    return {type(episodes)}


CALLS: dict[str, Callable[[Run], Any]] = {
    "check_train_results": lambda run: bool(
        check_train_results_new_api_stack(run.result)
    ),
    "result: top level": lambda run: {
        key
        for key in ("env_runners", "evaluation", "learners", "timers", "config")
        if isinstance(run.result[key], dict)
    },
    "algo.iteration": lambda run: run.algo.iteration,
    "algo.get_module": lambda run: run.algo.get_module() is not None,
    "module.forward_inference": action_inputs,
    "algo.get_weights": lambda run: list(run.algo.get_weights()),
    "algo.set_state with weights": set_weights_back,
    "algo.get_state": lambda run: (
        {"learner_group", "env_runner", "metrics_logger"} <= set(run.algo.get_state())
    ),
    "algo.evaluate": lambda run: set(run.algo.evaluate()) & {"env_runners"},
    "algo.get_default_config": lambda run: isinstance(
        run.algo.get_default_config(), AlgorithmConfig
    ),
    "env_runner.sample": sampled,
    "env_runner.sample of episodes": lambda run: len(
        run.algo.env_runner.sample(num_episodes=4)
    ),
    "env_runner.sample of timesteps": lambda run: sampled(run, num_timesteps=20),
    "env_runner.sample without exploring": lambda run: sampled(
        run, num_episodes=1, explore=False
    ),
    "env_runner.get_metrics": lambda run: (
        run.algo.env_runner.sample(num_episodes=3),
        run.algo.env_runner.get_metrics()["num_episodes"].peek() >= 3,
    )[1],
    "env_runner.get_spaces": lambda run: (
        {"__env__", DEFAULT_MODULE_ID} <= set(run.algo.env_runner.get_spaces())
    ),
    "env_runner.get_state": lambda run: type(run.algo.env_runner.get_state()),
    "foreach_env_runner": lambda run: len(
        run.algo.env_runner_group.foreach_env_runner(lambda er: er.module)
    ),
    "foreach_learner": lambda run: [
        list(result.get().keys())
        for result in run.algo.learner_group.foreach_learner(lambda one: one.module)
    ],
    "config.build_learner": lambda run: list(
        run.config.build_learner(env=run.env).module.keys()
    ),
    "config.build_learner_group": lambda run: list(
        run.config.build_learner_group(env=run.env).get_weights()
    ),
    "config.get_rl_module_spec": lambda run: (
        run.config.get_rl_module_spec(env=run.env).build().action_space
        == run.env.action_space
    ),
    "config.get_multi_rl_module_spec": lambda run: list(
        run.config.get_multi_rl_module_spec(env=run.env).build().keys()
    ),
    "config.build_env_to_module_connector": lambda run: type(
        run.config.build_env_to_module_connector(env=run.env)
    ),
    "config.build_module_to_env_connector": lambda run: type(
        run.config.build_module_to_env_connector(env=run.env)
    ),
    "config.copy": lambda run: run.config.copy(copy_frozen=False).lr == run.config.lr,
    "config.to_dict": lambda run: "lr" in run.config.to_dict(),
    "config.from_dict": lambda run: type(run.config).from_dict({"lr": 0.5}).lr,
    "config.get_state": lambda run: (
        type(run.config).from_state(run.config.get_state()).lr == run.config.lr
    ),
}
"""Every call by name; what it returns must be equal for both."""


@pytest.mark.parametrize("name", CALLS)
def test_what_ppo_answers_we_answer(runs: dict[str, Run], name: str) -> None:
    assert CALLS[name](runs["ours"]) == CALLS[name](runs["PPO"])


def test_a_checkpoint_is_restored(runs: dict[str, Run], tmp_path: Path) -> None:
    found = {name: restored(run, tmp_path / name) for name, run in runs.items()}
    assert found == {"PPO": 2, "ours": 2}


OF_PPO_ALONE = (
    # a value function, and coefficients that change
    *("vf_", "curr_kl_coeff", "curr_entropy_coeff"),
    # one action at a time, with connectors
    *("env_to_module", "module_to_env", "env_reset_timer", "env_step_timer"),
    *("rlmodule_inference_timer", "time_between_sampling", "sample", "weights_seq_no"),
    # ours are under `weights/`
    "diff_num_grad_updates_vs_sampler_policy",
)
"""How names of PPO's results begin that language models have no use for."""


@pytest.mark.parametrize("part", ["env_runners", "learners/default_policy"])
def test_results_have_ppos_names(runs: dict[str, Run], part: str) -> None:
    names = {
        which: {
            name.removeprefix(f"{part}/")
            for name in flat(run.result)
            if name.startswith(f"{part}/")
        }
        for which, run in runs.items()
    }
    missing = {
        name
        for name in names["PPO"] - names["ours"]
        if not name.startswith(OF_PPO_ALONE)
    }
    assert missing == set()


def test_evaluation_has_ppos_names(runs: dict[str, Run]) -> None:
    found = {
        which: run.result["evaluation"]["env_runners"] for which, run in runs.items()
    }
    wanted = {
        name for name in found["PPO"] if "episode" in name and "env_to" not in name
    }
    assert wanted <= set(found["ours"])
    assert found["ours"]["num_episodes"] == 8  # 4 problems, greedy and sampled
    assert 0.0 <= found["ours"]["episode_return_mean"] <= 1.0
    assert runs["ours"].result["evaluation"]["greedy_accuracy"] >= 0.0


def test_a_module_writes_the_generators_greedy_response(runs: dict[str, Run]) -> None:
    """RLlib's inference loop: observation, module, action, step."""
    algo, env = runs["ours"].algo, runs["ours"].env
    (episode,) = algo.env_runner.sample(num_episodes=1, explore=False)
    problem_id = episode.get_infos(0)["problem_id"]
    problems = algo.env_runner.token_env.problems
    problem = next(
        problems[i]
        for i in range(len(problems))
        if problems[i].problem_id == problem_id
    )
    module = algo.get_module()
    observation, _ = env.reset(options={"problem": problem})
    actions: list[int] = []
    rewards: list[float] = []
    is_done = False
    while not is_done:
        batch = {
            name: torch.from_numpy(part)[None] for name, part in observation.items()
        }
        logits = module.forward_inference({Columns.OBS: batch})[
            Columns.ACTION_DIST_INPUTS
        ]
        actions.append(int(logits[0].argmax()))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append(float(reward))
        is_done = terminated or truncated
    assert actions == episode.get_actions().tolist()
    np.testing.assert_allclose(rewards, episode.get_rewards(), atol=1e-6)
    assert info["response_text"] == episode.get_infos(-1)["response_text"]


@pytest.mark.parametrize("name", ["add_module", "remove_module"])
def test_a_second_module_is_refused(runs: dict[str, Run], name: str) -> None:
    with pytest.raises(ValueError, match=r"`module_id` .\"other\". .* one module"):
        getattr(runs["ours"].algo, name)("other", module_spec=None)


def test_random_tokens_are_refused(runs: dict[str, Run]) -> None:
    with pytest.raises(ValueError, match=r"`random_actions` .True. must be False"):
        runs["ours"].algo.env_runner.sample(num_episodes=1, random_actions=True)
