"""RLlib's own PPO steps our environment with its own env runner."""

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

import pure_rllib.envs

NUM_TOKENS = 300
MAX_RESPONSE_TOKENS = 16


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 3])
def test_stock_ppo_trains_on_tokens(ray_cluster, num_envs):
    assert "pure_rllib/Arithmetic-v0" in pure_rllib.envs.ENV_IDS
    config = (
        PPOConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={
                "process_rewards": "exact",
                "verifier": None,
                "max_response_tokens": MAX_RESPONSE_TOKENS,
            },
        )
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=num_envs,
            env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
        )
        .learners(num_learners=0)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
        .training(
            train_batch_size_per_learner=NUM_TOKENS, minibatch_size=100, num_epochs=1
        )
        .debugging(seed=0)
    )
    algo = config.build_algo()
    try:
        assert type(algo.env_runner) is SingleAgentEnvRunner
        episodes = algo.env_runner.sample(num_episodes=6, random_actions=True)
        assert len(episodes) >= 6
        for episode in episodes:
            assert episode.is_terminated or episode.is_truncated
            assert 1 <= len(episode) <= MAX_RESPONSE_TOKENS
            # Every response has at least one step; random tokens are never right.
            assert episode.get_return() <= -1.0
            ends = [info["is_boundary"] for info in episode.get_infos()[1:]]
            rewards = list(episode.get_rewards())
            assert [reward != 0.0 for reward in rewards] == ends
        results = algo.train()
        sampled = results["env_runners"]
        assert sampled["num_env_steps_sampled"] >= NUM_TOKENS
        assert sampled["num_episodes"] > 0
        assert -MAX_RESPONSE_TOKENS <= sampled["episode_return_mean"] <= -0.5
    finally:
        algo.stop()
