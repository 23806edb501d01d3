"""Sampling that goes on while weights change: env runners are called turn by turn."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from threading import Condition, Thread
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override

from pure_rllib.data.order import ProblemOrder, ProblemTicket
from pure_rllib.rollouts.group import Group
from pure_rllib.rollouts.runner_sample import RunnerSample
from pure_rllib.rollouts.sampler import (
    FETCH_S,
    STOP_PATIENCE_S,
    SampledBatch,
    Sampler,
    SamplingCall,
)
from pure_rllib.weight_sync.handle import Weights
from pure_rllib.weight_sync.sync import WeightSync

Prompts = dict[int, ProblemTicket]
"""Problems by the ids of the groups that they make."""


class FlightPlan:
    """Which prompts nobody has, which env runner has which, and what is finished.

    Attributes:
        end: the first prompt that has not been asked.
        waiting: prompts that nobody has.
        held: by env runner, the prompts that it has been dealt and not finished.
        finished: groups that no batch has taken.
    """

    def __init__(self) -> None:
        self.end = 0
        self.waiting: Prompts = {}
        self.held: dict[int, Prompts] = {}
        self.finished: dict[int, Group] = {}
        self._new: dict[int, Prompts] = {}

    def ask(self, prompts: Mapping[int, ProblemTicket]) -> None:
        """Adds prompts behind those that were asked."""
        self.waiting |= prompts
        self.end = max(prompts, default=self.end - 1) + 1

    def deal(self, runners: Collection[int]) -> None:
        """Gives each waiting prompt to the env runner that is at the fewest.

        An env runner with long responses is at its prompts for longer, and gets fewer.
        """
        for i in sorted(self.waiting) if runners else ():
            runner = min(runners, key=lambda r: len(self.held.get(r, ())))
            ticket = self.waiting.pop(i)
            self.held.setdefault(runner, {})[i] = ticket
            self._new.setdefault(runner, {})[i] = ticket

    def news(self, runner: int) -> Prompts:
        """Returns what an env runner was dealt since this was last asked."""
        return self._new.pop(runner, {})

    def finish(self, runner: int, group: Group) -> None:
        """Notes that an env runner has finished a group."""
        del self.held[runner][group.group_id]
        self.finished[group.group_id] = group

    def lose(self, runner: int) -> int:
        """Takes all prompts from an env runner that is lost; returns how many."""
        lost = self.held.pop(runner, {})
        self._new.pop(runner, None)
        self.waiting |= lost
        return len(lost)

    def take(self, ids: Iterable[int]) -> list[Group]:
        """Hands over finished groups."""
        return [self.finished.pop(i) for i in ids]


@dataclass(slots=True)
class _Turn:
    """A call of an env runner that is under way.

    Attributes:
        answers: the sample and its episodes to come.
        plan: that of its prompts.
        begun: when it was called.
    """

    answers: list[ray.ObjectRef]
    plan: FlightPlan
    begun: float


class InFlightSampler(Sampler):
    """Samples on while learners update, and while weights change.

    At most `(max_weight_lag + 1) * num_prompts` groups are asked and not learned from.
    A thread calls the env runners turn by turn with the prompts that they are dealt
    and the newest weights, which they take over between two tokens. A batch is the next
    `num_prompts` groups in the order of their prompts, so that short responses are not
    favoured; later ones that are finished wait.

    Args:
        env_runners: remote, with vLLM.
        sync: publishes to Ray's object store.
        order: of the problems.
        config: the algorithm's.
    """

    def __init__(
        self,
        env_runners: EnvRunnerGroup,
        sync: WeightSync,
        order: ProblemOrder,
        config: Any,
    ):
        super().__init__(env_runners, sync, order, config)
        self._changed = Condition()
        self._plan = FlightPlan()
        self._newest: Weights | None = None
        self._turns: dict[int, _Turn] = {}
        self._plans: dict[int, FlightPlan] = {}  # that env runners know
        self._taken = SampledBatch()  # what was found out since the last batch
        self._seconds: dict[int, dict[str, float]] = {}
        # A daemon: a process that ends does not wait for what nobody has closed.
        self._thread = Thread(target=self._run, name="in_flight", daemon=True)
        self._is_closed = self._has_ended = False
        self._error: Exception | None = None

    @override(Sampler)
    def next_batch(self, cursor: int, weights: Weights) -> SampledBatch:
        """Returns the groups of the prompts from `cursor` on; see `Sampler`."""
        config, plan = self._config, self._plan
        with self._changed:
            self._newest = weights
            plan.end = max(plan.end, cursor)
            last = cursor + (config.max_weight_lag + 1) * config.num_prompts
            plan.ask(self._prompts(plan.end, last - plan.end))
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify_all()
            ids = range(cursor, cursor + config.num_prompts)
            self._changed.wait_for(
                lambda: self._has_ended or plan.finished.keys() >= {*ids}
            )
            if self._has_ended:
                raise self._error or RuntimeError("Sampling has ended; see the log.")
            batch, self._taken = self._taken, SampledBatch()
            batch.groups = plan.take(ids)
            batch.weights_version = weights.version
            batch.seconds = max(
                self._seconds.values(),
                key=lambda seconds: seconds["total"],
                default=defaultdict(float),
            )
            self._seconds = {}
        return batch

    def _run(self) -> None:
        try:
            self._fly()
        except (RayError, RuntimeError) as error:
            self._error = error  # raised by `next_batch`
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _fly(self) -> None:
        """Calls env runners until the run ends, or one of them raises something."""
        while not self._is_closed:
            living = self._living()
            with self._changed:
                self._plan.deal(living)
                for i in living:
                    if i not in self._turns and self._plan.held.get(i):
                        self._call(i)
                turns = dict(self._turns)
                if not turns:
                    self._changed.wait(FETCH_S)
                    continue
            first = {turn.answers[0]: i for i, turn in turns.items()}
            answered, _ = ray.wait(list(first), timeout=FETCH_S)
            for answer in answered:
                self._land(first[answer], answer)
            self._end_hung()

    def _call(self, i: int) -> None:
        """Begins an env runner's next turn."""
        news = self._plan.news(i)
        answers = (
            self._actors()[i]
            .advance_apart.options(num_returns=2)
            .remote(
                tickets=list(news.values()),
                group_ids=list(news),
                weights=self._newest,
                anew=self._plans.get(i) is not self._plan,
            )
        )
        self._plans[i] = self._plan
        self._turns[i] = _Turn(answers, self._plan, monotonic())

    def _land(self, i: int, answer: ray.ObjectRef) -> None:
        """Takes in what a turn has brought."""
        try:
            sample: RunnerSample = ray.get(answer)
        except RayTaskError:
            raise  # its own error, also where that is one of Ray's
        except RayActorError:
            self._lose(i)
            return
        with self._changed:
            turn = self._turns.pop(i)
            if turn.plan is not self._plan:
                return  # of a time before `drop`
            for group in sample.groups:
                group.episodes = turn.answers[1]
                self._plan.finish(i, group)
                self._taken.metrics.append(sample.metrics)
            batch = self._taken
            batch.counts += sample.counts
            batch.logp_gap = max(sample.logp_gap, batch.logp_gap)
            seconds = self._seconds.setdefault(i, defaultdict(float))
            for phase, of_turn in sample.seconds.items():
                seconds[phase] += of_turn
            self._changed.notify_all()

    def _lose(self, i: int) -> None:
        self._env_runners._worker_manager.set_actor_state(i, healthy=False)
        with self._changed:
            del self._turns[i]
            self._plans.pop(i, None)
            self._taken.num_resampled += self._plan.lose(i)

    def _end_hung(self) -> None:
        limit_s = self._env_runners._remote_config.sample_timeout_s
        for i, turn in list(self._turns.items()):
            if limit_s is not None and monotonic() - turn.begun > limit_s:
                ray.kill(self._actors()[i], no_restart=False)
                self._lose(i)

    @override(Sampler)
    def _launch(self, *args: Any, **kwargs: Any) -> SamplingCall:
        # Evaluation's newest weights must not be followed by older ones of a turn.
        with self._changed:
            call = super()._launch(*args, **kwargs)
            self._newest = call.weights
        return call

    @override(Sampler)
    def drop(self) -> None:
        """Forgets all that is under way or finished: it will be asked again."""
        with self._changed:
            self._plan = FlightPlan()

    @override(Sampler)
    def wait(self, timeout_s: float | None = None) -> list[int]:
        """Waits until all that was asked has been sampled."""
        plan = self._plan
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._has_ended or not (plan.waiting or any(plan.held.values()))
                ),
                timeout_s,
            )
            return [i for i, held in plan.held.items() if held]

    @override(Sampler)
    def close(self, patience_s: float = STOP_PATIENCE_S) -> None:
        """Ends the thread; kills env runners that are not done with their turn then."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        answers = {turn.answers[0]: i for i, turn in self._turns.items()}
        if answers:
            _, busy = ray.wait(
                list(answers), num_returns=len(answers), timeout=patience_s
            )
            for answer in busy:
                if answers[answer] in self._actors():
                    ray.kill(self._actors()[answers[answer]])
        self._turns = {}
