"""What grows with a run: cost per token, and the driver's cost per group.

    python benchmarks/growth.py tokens     # 10^4 to 10^6 tokens an iteration
    python benchmarks/growth.py workers    # 1 to 4 learners and as many env runners
    python benchmarks/growth.py driver     # 10 to 1,000 env runners, 100 prompts each

Costs are CPU seconds, so that neither waiting nor other work on the machine counts.

`tokens` and `workers` train a tiny random policy on arithmetic; theirs are of all
processes. `driver` is an algorithm's own `training_step`, with sampler, object
references, delivery and metrics as ever; only env runners and learners are stand-ins,
in a few processes: they answer with copies of one real group, fetch what they are dealt
as learners do, and report what a real learner did. Its costs are of the driver's
process with all its threads; its bytes are what it sends and gets through Ray.

The last line is a JSON object: the rows, and for each cost `growth`, the largest over
the smallest.
"""

import argparse
import copy
import json
import logging
import pickle
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import psutil
import ray
import torch
from shapes import SHAPES
from updates import update

from pure_rllib.algorithms import PUREConfig
from pure_rllib.data.order import ProblemOrder
from pure_rllib.envs.arithmetic import ArithmeticEnv
from pure_rllib.learners.delivery import GroupInbox
from pure_rllib.reporting.tables import format_table
from pure_rllib.rollouts.runner_sample import RunnerSample
from pure_rllib.rollouts.sampler import Sampler

GROUP_SIZE, GROUPS_PER_STEP, RESPONSE_TOKENS = 8, 16, 64
Row = dict[str, Any]


def make_config(num_prompts: int, num_workers: int = 0) -> PUREConfig:
    tokenizer = ArithmeticEnv(process_rewards="none").tokenizer
    return (
        PUREConfig()
        .environment(
            "pure_rllib/Arithmetic-v0",
            env_config={
                "process_rewards": "exact",
                "max_response_tokens": RESPONSE_TOKENS,
            },
        )
        .env_runners(
            num_prompts=num_prompts,
            group_size=GROUP_SIZE,
            num_env_runners=num_workers,
            num_cpus_per_env_runner=0.25,
        )
        .rl_module(
            model_config={"model": {**SHAPES["tiny"], "vocab_size": len(tokenizer)}}
        )
        .learners(num_learners=num_workers, num_cpus_per_learner=0.25)
        .training(minibatch_size=GROUP_SIZE * min(num_prompts, GROUPS_PER_STEP))
        .debugging(seed=0)
    )


def cpu_seconds() -> float:
    """Of this process and all that it and Ray have started and not ended."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def train(config: PUREConfig, warm_up: int) -> Row:
    """Costs of one iteration, after some that do not count."""
    algo = config.build_algo()
    for _ in range(warm_up):
        algo.train()
    before, start = cpu_seconds(), time.perf_counter()
    result = algo.train()
    wall_s, cpu_s = time.perf_counter() - start, cpu_seconds() - before
    algo.stop()
    tokens = result["env_runners"]["num_env_steps_sampled"]
    phases = {
        f"{phase}_share": result["seconds"][phase] / result["seconds"]["iteration"]
        for phase in ("sample", "verify", "learn", "other")
    }
    return {
        "tokens": tokens,
        "cpu_us_per_token": 1e6 * cpu_s / tokens,
        "wall_us_per_token": 1e6 * wall_s / tokens,
        **phases,
    }


def tokens(options: argparse.Namespace) -> list[Row]:
    # Imports, kernels, worker processes; and how early a random policy ends.
    first = train(make_config(GROUPS_PER_STEP), warm_up=0)
    of_a_prompt = first["tokens"] / GROUPS_PER_STEP
    return [
        train(make_config(round(size / of_a_prompt)), warm_up=0)
        for size in options.tokens
    ]


def workers(options: argparse.Namespace) -> list[Row]:
    return [
        {"workers": n, **train(make_config(options.prompts, n), warm_up=1)}
        for n in range(1, options.workers + 1)
    ]


class StandInRunner:
    """Answers for env runners: every group is a copy of one."""

    def __init__(self, sample: RunnerSample):
        self._sample, self._group = sample, pickle.dumps(sample.groups[0])

    def sample_apart(self, *, group_ids: Sequence[int], **kwargs: Any) -> list[Any]:
        groups, episodes = [], []
        for group_id in group_ids:
            group = pickle.loads(self._group)  # it shares nothing with the others
            group.group_id = group_id
            for record in group.records:
                record.group_id = str(group_id)
            episodes.append(group.episodes)
            group.episodes = []
            groups.append(group)
        sample = copy.copy(self._sample)
        sample.groups = groups
        return [sample, *episodes]


class StandInLearner:
    """Fetches groups, and reports what a learner did."""

    def __init__(self, report: Any):
        self._inbox, self._report = GroupInbox(), report

    def apply(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self, *args)

    def fetch_groups(self, groups: Any) -> list[int]:
        return self._inbox.fetch(groups)

    def update(self, **kwargs: Any) -> Any:
        self._inbox.take()
        return self._report


class StandIns(SimpleNamespace):
    """A group of RLlib's, of env runners or learners, as far as the driver asks it."""

    def __init__(self, actors: dict[int, Any], config: PUREConfig):
        super().__init__(
            config=config,
            is_local=False,
            is_remote=True,
            num_remote_env_runners=lambda: len(actors),
            healthy_env_runner_ids=lambda: list(actors),
            _remote_config=config,
            _worker_manager=SimpleNamespace(actors=lambda: actors),
        )

    def __len__(self) -> int:
        return len(self._worker_manager.actors())


class Traffic:
    """Counts the bytes that this process sends and gets through Ray."""

    def __init__(self) -> None:
        self.num_bytes = 0
        context = ray._private.worker.global_worker.get_serialization_context()
        self._serialize = context.serialize
        self._deserialize = context._deserialize_object
        context.serialize, context._deserialize_object = self._send, self._get

    def _send(self, value: Any) -> Any:
        made = self._serialize(value)
        self.num_bytes += made.total_bytes
        return made

    def _get(self, data: Any, *others: Any) -> Any:
        self.num_bytes += 0 if data is None else memoryview(data).nbytes
        return self._deserialize(data, *others)


def one_of_each(algo: Any) -> tuple[RunnerSample, Any]:
    """A real env runner's sample of one group, and a real learner's report on it."""
    ticket = ProblemOrder(algo.env_summary.num_problems, 0).take(0, 1)
    sample = algo.env_runner.sample(tickets=ticket, weights=algo._published())
    (report,), _ = update(algo.learner_group, [{0: sample.groups[0].episodes}])
    return sample, report


def driver(options: argparse.Namespace) -> list[Row]:
    algo: Any = make_config(1).build_algo()
    sample, report = one_of_each(algo)
    stand_in = ray.remote(num_cpus=0)
    runners = [stand_in(StandInRunner).remote(sample) for _ in range(2)]
    learners = {i: stand_in(StandInLearner).remote(report) for i in range(2)}
    weights = algo._published()
    algo._sync = SimpleNamespace(
        publish=lambda version: weights,
        before_launch=lambda actors, weights, wait_for: (weights, list(actors)),
    )
    traffic, rows = Traffic(), []
    # The first one, again, is for warming up.
    for count in (options.env_runners[0], *options.env_runners):
        config = algo.config.copy(copy_frozen=False)
        config.env_runners(num_prompts=options.prompts * count)
        config.training(minibatch_size=GROUP_SIZE * GROUPS_PER_STEP)
        actors = {i: runners[i % 2] for i in range(1, count + 1)}
        algo.config, algo.learner_group = config, StandIns(learners, config)
        order = ProblemOrder(algo.env_summary.num_problems, 0)
        algo._sampler = Sampler(StandIns(actors, config), algo._sync, order, config)
        bytes_before, cpu_before = traffic.num_bytes, time.process_time()
        start = time.perf_counter()
        algo.training_step()
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_before
        num_groups = config.num_prompts
        rows.append(
            {
                "env_runners": count,
                "groups": num_groups,
                "cpu_us_per_group": 1e6 * cpu_s / num_groups,
                "bytes_per_group": (traffic.num_bytes - bytes_before) / num_groups,
                "wall_s": wall_s,
            }
        )
        print(rows[-1], flush=True)
    return rows[1:]


def growth(rows: Sequence[Row]) -> dict[str, float]:
    costs = [name for name in rows[0] if name.startswith(("cpu_", "bytes_"))]
    values = {name: [row[name] for row in rows] for name in costs}
    return {name: round(max(v) / min(v), 3) for name, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="what", required=True)
    own = {run: kinds.add_parser(run.__name__) for run in (tokens, workers, driver)}
    for run, sub in own.items():
        sub.set_defaults(run=run)
    sizes = {"type": int, "nargs": "+"}
    own[tokens].add_argument("--tokens", **sizes, default=[10**4, 10**5, 10**6])
    own[workers].add_argument("--workers", type=int, default=4)
    own[workers].add_argument("--prompts", type=int, default=64)
    own[driver].add_argument("--env-runners", **sizes, default=[10, 100, 1000])
    own[driver].add_argument("--prompts", type=int, default=100, help="to each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(num_cpus=4, include_dashboard=False, logging_level="error")
    rows = options.run(options)
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    print(json.dumps({"growth": growth(rows), "rows": rows}))
    ray.shutdown()


if __name__ == "__main__":
    main()
