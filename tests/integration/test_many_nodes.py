"""The embedded default on three nodes, and what happens when parts of it die.

The nodes are Ray's own (`ray.cluster_utils.Cluster`): processes of this machine, which
know nothing of each other's object stores and weights. One run goes through all tests;
each of them leaves it able to go on.
"""

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import gymnasium as gym
import pytest
import ray
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster
from ray.tune.registry import register_env
from ray.util import placement_group_table

from pure_rllib.algorithms import PURE
from pure_rllib.cli.experiment import load_experiment
from pure_rllib.data.order import ProblemOrder
from pure_rllib.learners.torch_learner import LLMTorchLearner
from pure_rllib.rollouts.group import SampledResponse
from pure_rllib.rollouts.sampler import SampledBatch
from tests.integration.conftest import TINY_POLICY

pytestmark = pytest.mark.slow

NUM_PROMPTS, NUM_PROBLEMS = 4, 10
SMALL = [
    "environment.env_config.process_rewards=exact",
    f"environment.env_config.num_problems={NUM_PROBLEMS}",
    "environment.env_config.max_response_tokens=24",
    f"env_runners.num_prompts={NUM_PROMPTS}",
    "env_runners.group_size=4",
    "training.minibatch_size=8",
    f"rl_module.model_config.model={json.dumps(TINY_POLICY)}",
]
SPREAD = [
    "env_runners.num_env_runners=2",
    "env_runners.custom_resources_per_env_runner={sampling: 1}",
    "learners.num_learners=2",
    "learners.custom_resources_per_learner={learning: 1}",
]
# Default: 15 s until a node is given up. And every group is to lie where it was made,
# where Ray would send one as small as these along with the answer.
SYSTEM = {"health_check_period_ms": 1000, "max_direct_call_object_size": 3000}
# One of these per node, so that there is one env runner on each.
SAMPLING = {"num_cpus": 2, "resources": {"sampling": 1}}


class RecordingLearner(LLMTorchLearner):
    """Writes down which groups it learns from."""

    def _train_batch(self, episodes: Sequence[Any]) -> dict[str, Any]:
        ids = {SampledResponse.of(episode).group_id for episode in episodes}
        path = Path(os.environ["PURE_TEST_GROUPS"])
        with path.open("a") as stream:
            stream.write("".join(f"{i}\n" for i in sorted(ids)))
        return super()._train_batch(episodes)


@dataclass
class Run:
    """A run on three nodes."""

    algo: PURE
    cluster: Cluster
    trained: Path

    def train(self) -> dict[str, Any]:
        """Trains an iteration; no prompt may be lost or trained twice in it."""
        result = self.algo.train()
        self.check_prompts()
        return result

    def check_prompts(self) -> None:
        cursor = self.algo._counts.cursor
        groups = [int(line) for line in self.trained.read_text().split()]
        assert Counter(groups) == Counter(range(cursor))
        tickets = ProblemOrder(NUM_PROBLEMS, seed=0).take(0, cursor)
        asked = Counter((t.epoch, t.index) for t in tickets)
        assert set(asked.values()) == {1}
        problems = self.algo.env_runner_group.local_env_runner.token_env.problems
        for group in self.algo._last_batch.groups:
            problem = problems[tickets[group.group_id].index]
            assert group.records[0].metadata["problem_id"] == problem.problem_id

    def env_runner(self, index: int) -> tuple[int, str]:
        """Process id and node of an env runner."""
        return where(self.algo.env_runner_group._worker_manager.actors()[index])

    def after_sampling(self, accident: Callable[[], object]) -> None:
        """Has something happen between the next iteration's sampling and learning."""
        sampler = self.algo._sampler
        next_batch = sampler.next_batch

        def with_accident(*args: Any) -> SampledBatch:
            vars(sampler).pop("next_batch")
            batch = next_batch(*args)
            accident()
            return batch

        vars(sampler)["next_batch"] = with_accident

    def until_all_are_back(self) -> None:
        """Trains until both env runners sample again."""
        for _ in range(30):
            self.train()
            if len(self.algo.env_runner_group.healthy_env_runner_ids()) == 2:
                return
            sleep(1.0)
        raise AssertionError("a lost env runner did not come back")


def where(actor: Any) -> tuple[int, str]:
    return ray.get(  # type: ignore[no-any-return]
        actor.__ray_call__.remote(
            lambda _: (os.getpid(), ray.get_runtime_context().get_node_id())
        )
    )


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, no_ray: None
) -> Iterator[tuple[Cluster, Path]]:
    trained = tmp_path_factory.mktemp("trained") / "groups"
    trained.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURE_TEST_GROUPS", str(trained))
        nodes = Cluster()
        nodes.add_node(num_cpus=3, resources={"learning": 2}, _system_config=SYSTEM)
        # Else every `ray.init()` of this machine would join.
        reset_ray_address()
        for _ in range(2):
            nodes.add_node(**SAMPLING)
        ray.init(nodes.address, logging_level="error", log_to_driver=False)
        yield nodes, trained
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def run(cluster: tuple[Cluster, Path]) -> Iterator[Run]:
    nodes, trained = cluster
    experiment = load_experiment("arithmetic").with_overrides([*SMALL, *SPREAD])
    config = experiment.build_config()
    # Too large for Ray to keep it with the actor that it starts again.
    data = bytes(10_000)
    register_env(
        "with_data",
        lambda context: data and gym.make("pure_rllib/Arithmetic-v0", **context),
    )
    config.environment("with_data")
    # This file cannot be imported where learners run.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    config.learners(learner_class=RecordingLearner)
    config.algo_class = PURE
    algo = config.build_algo()
    yield Run(algo, nodes, trained)
    algo.stop()


def test_learners_are_packed(run: Run) -> None:
    learners = run.algo.learner_group._worker_manager.actors().values()
    (home,) = {where(actor)[1] for actor in learners}
    assert home == ray.get_runtime_context().get_node_id()
    nodes = {run.env_runner(index)[1] for index in (1, 2)}
    assert len(nodes) == 2 and home not in nodes
    (group,) = placement_group_table().values()
    assert group["strategy"] == "PACK"


def test_three_nodes_learn_what_one_process_learns(run: Run) -> None:
    experiment = load_experiment("arithmetic").with_overrides(SMALL)
    alone = experiment.build_config().build_algo()
    for _ in range(2):
        here, there = alone.train(), run.train()
        # Env runners of other nodes hold the learners' weights.
        assert there["generator_learner_logp_gap"] < 1e-4
        assert there["weights"]["version"] == here["weights"]["version"]
        assert there["response"]["tokens"] == here["response"]["tokens"]
        assert there["loss"]["policy"] == pytest.approx(
            here["loss"]["policy"], abs=1e-5
        )
    alone.stop()


def test_an_env_runner_killed_while_it_samples_is_replaced(run: Run) -> None:
    pid, _ = run.env_runner(1)
    # Stopped, it cannot have answered before it is killed.
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(2.0, kill, [pid])
    timer.start()
    result = run.train()
    timer.join()
    assert result["groups"]["resampled"] == NUM_PROMPTS // 2
    run.until_all_are_back()
    assert run.env_runner(1)[0] != pid


def test_what_a_killed_env_runner_has_sampled_is_not_lost(run: Run) -> None:
    pid, _ = run.env_runner(2)
    run.after_sampling(lambda: kill(pid))
    assert run.train()["groups"]["resampled"] == 0
    # The next call finds it dead, or started again.
    run.until_all_are_back()
    assert run.env_runner(2)[0] != pid


def test_groups_of_a_lost_node_are_sampled_again(run: Run) -> None:
    _, lost = run.env_runner(1)
    (node,) = [n for n in run.cluster.worker_nodes if n.node_id == lost]
    run.after_sampling(lambda: run.cluster.remove_node(node, allow_graceful=False))
    result = run.train()
    assert result["groups"]["resampled"] == NUM_PROMPTS // 2
    assert [len(g.records) for g in run.algo._last_batch.groups] == [4] * NUM_PROMPTS
    # Ray starts it on a node that has room.
    new = run.cluster.add_node(**SAMPLING)
    run.until_all_are_back()
    assert run.env_runner(1)[1] == new.node_id
