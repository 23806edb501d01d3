"""PRM actors: the same scores, and none of them lost with an actor."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.make import Lazy, make_step_scorer
from pure_rllib.rewards.prm.actors import PRMActors, PRMPool, PRMPoolSettings
from pure_rllib.testing import (
    HashScorer,
    byte_tokenizer,
    text_request,
    tiny_model_config,
)
from tests.integration.conftest import built

pytestmark = pytest.mark.slow
TOKENIZER = byte_tokenizer()
PRM = tiny_model_config(len(TOKENIZER), max_position_embeddings=80)
# A busy machine takes long to start an actor.
SETTINGS = PRMPoolSettings(
    num_cpus=0.1, batch_tokens=100, max_retries=1, timeout_s=15.0
)


def requests(count: int) -> list[ScoringRequest]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        num_steps = int(rng.integers(1, 7))
        steps = ["x" * int(rng.integers(1, 20)) for _ in range(num_steps)]
        made.append(text_request(*steps, prompt=f"p{i}"))
    return made


class ScriptedScorer(HashScorer):
    """Takes its time; a prompt may ask for an error or the process's end.

    Args:
        hang_file: where it is found, it is removed and the call never ends.

    Attributes:
        counts: calls by process id.
    """

    def __init__(self, hang_file: str):
        super().__init__()
        self.hang_file = hang_file
        self.counts: Counter[str] = Counter()

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        time.sleep(0.1)
        self.counts[f"by {os.getpid()}"] += 1
        if os.path.exists(self.hang_file):
            os.unlink(self.hang_file)
            time.sleep(600)
        prompts = {request.prompt for request in requests}
        if "error" in prompts:
            raise ValueError("a bad prompt")
        if "end" in prompts:
            os._exit(1)
        return super().score(requests)


@dataclass
class Scripted:
    actors: PRMActors
    hang_file: Path

    def pool(self, **settings) -> PRMPool:
        return PRMPool(self.actors.actors, replace(SETTINGS, **settings))

    def pids(self) -> list[int]:
        """Process ids, once all actors are up."""
        return ray.get([a.pid.remote() for a in self.actors.actors], timeout=100)


@pytest.fixture(scope="module")
def scripted(ray_cluster: None, tmp_path_factory) -> Iterator[Scripted]:
    hang_file = tmp_path_factory.mktemp("scripted") / "hang"
    actors = PRMActors(ScriptedScorer(str(hang_file)), 2, SETTINGS)
    yield Scripted(actors, hang_file)
    actors.stop()


@pytest.fixture(scope="module")
def prm_pool(ray_cluster: None) -> Iterator[PRMPool]:
    scorer = make_step_scorer(PRM, None, None, TOKENIZER)
    assert scorer is not None
    settings = PRMPoolSettings(num_cpus=0.1, batch_tokens=300)
    actors = PRMActors(scorer, 2, settings)
    yield PRMPool(actors.actors, settings)
    actors.stop()


def test_a_pool_gives_the_scores_of_one_process(prm_pool):
    scorer = make_step_scorer(PRM, None, None, TOKENIZER)
    assert isinstance(scorer, Lazy)
    many = requests(30)
    expected = scorer.score(many)
    # Several env runners at once.
    found: dict[int, list[np.ndarray]] = {}
    pools = [PRMPool(prm_pool.actors, prm_pool.settings) for _ in range(3)]

    def ask(number: int) -> None:
        found[number] = pools[number].score(many)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scored in found.values():
        for first, second in zip(scored, expected, strict=True):
            np.testing.assert_allclose(first, second, atol=1e-5)
            assert first.dtype == np.float32
    num_overlong = sum(pool.counts["overlong"] for pool in pools)
    assert num_overlong == 3 * scorer.counts["overlong"] > 0
    assert len(found) == 3 and prm_pool.score([]) == []


def asking(prompt: str) -> ScoringRequest:
    (one,) = requests(1)
    return replace(one, prompt=prompt)


def check_scores(found: list[np.ndarray], asked: list[ScoringRequest]) -> None:
    for first, second in zip(found, HashScorer().score(asked), strict=True):
        np.testing.assert_array_equal(first, second)


def test_an_error_of_the_scorer_is_no_reason_to_try_again(scripted):
    pool = scripted.pool()
    with pytest.raises(ValueError, match="a bad prompt"):
        pool.score([*requests(1), asking("error")])
    assert pool.counts["retries"] == 0
    check_scores(pool.score(requests(1)), requests(1))


def test_a_killed_actor_loses_no_response(scripted):
    many = requests(40)
    pool = scripted.pool()
    pids = scripted.pids()
    killer = threading.Timer(0.5, partial(os.kill, pids[0], signal.SIGKILL))
    killer.start()
    check_scores(pool.score(many), many)
    killer.join()
    assert pool.counts["retries"] >= 1
    # It is started again, and takes part again.
    again = scripted.pids()[0]
    assert again != pids[0]
    check_scores(pool.score(many), many)
    assert pool.counts[f"by {again}"] > 0


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_stuck_actor_is_replaced(scripted, is_stopped):
    pids = scripted.pids()
    if is_stopped:
        # It cannot notice by itself; Ray needs some seconds to end it.
        os.kill(pids[0], signal.SIGSTOP)
    else:
        scripted.hang_file.touch()
    pool = scripted.pool()
    check_scores(pool.score(requests(3)), requests(3))
    assert pool.counts["retries"] == 1
    assert not scripted.hang_file.exists()
    assert sum(a != b for a, b in zip(pids, scripted.pids(), strict=True)) == 1


def test_retries_end_with_a_clear_error(scripted):
    pool = scripted.pool()
    with pytest.raises(RuntimeError, match=r"2 responses.*lost 2 times"):
        pool.score([*requests(1), asking("end")])


@pytest.mark.parametrize(
    ("num_cpus", "match"),
    [(0.1, "lost for good"), (1000.0, "None of the 1 PRM actors answered in 8 s")],
)
def test_no_actor_that_comes_up_is_a_clear_error(
    ray_cluster: None, num_cpus: float, match: str
):
    # One is ended for good; the other waits for CPUs that are not there.
    settings = replace(SETTINGS, num_cpus=num_cpus, timeout_s=2.0)
    actors = PRMActors(HashScorer(), 1, settings)
    if num_cpus < 1:
        ray.get(actors.actors[0].pid.remote())
        ray.kill(actors.actors[0])
    with pytest.raises(RuntimeError, match=match):
        PRMPool(actors.actors, settings).score(requests(1))
    actors.stop()


def test_training_with_prm_actors(tiny_config):
    prm = tiny_model_config(len(build_tokenizer(TASK_Z)))
    config = tiny_config.environment(
        env_config={"prm": prm, "process_rewards": "none"}
    ).env_runners(
        num_env_runners=1,
        num_prm_actors=1,
        prm_actor_kwargs={"num_cpus": 0.5, "batch_tokens": 100},
    )
    with built(config) as algo:
        names = algo.config.prm_actor_names
        result = algo.train()
    assert 0.0 < result["throughput"]["scoring_share"] < 1.0
    assert result["prm"]["retries"] == 0.0
    assert abs(result["reward"]["process_mean"]) > 0
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(names[0])
