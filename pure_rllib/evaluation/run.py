"""An evaluation from its settings to its folder, at once or in several goes."""

import itertools
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
import ray

from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.evaluation.benchmarks import Benchmark, load_benchmark
from pure_rllib.evaluation.engines import EnginePool
from pure_rllib.evaluation.estimators import vote_classes
from pure_rllib.evaluation.judges import (
    JudgeTask,
    ReasoningJudge,
    make_judges,
    same_value,
)
from pure_rllib.evaluation.plan import Asked, Plan, make_plan
from pure_rllib.evaluation.record import differences
from pure_rllib.evaluation.report import Report, write_report
from pure_rllib.evaluation.samples import (
    BenchmarkFiles,
    Sample,
    SampleKey,
)
from pure_rllib.evaluation.settings import (
    JudgeSettings,
    PolicySettings,
    SamplingSettings,
    settings_of,
)
from pure_rllib.generation.base import Finished, Request
from pure_rllib.reporting.progress import ProgressBar
from pure_rllib.whole_folder import remove_leftovers, write_text

SETTINGS_FILE = "settings.json"
_JUDGED_TOGETHER = 16
_T = TypeVar("_T")


class _Task(NamedTuple):
    """One sample that is asked for: of which benchmark, and which one."""

    benchmark: int
    key: SampleKey


def evaluate(
    policy: str | Mapping[str, Any] | PolicySettings,
    benchmarks: Sequence[str | Benchmark],
    sampling: Mapping[str, Any] | SamplingSettings | None = None,
    judge: Mapping[str, Any] | JudgeSettings | None = None,
    *,
    out: str | Path,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    resume: bool = False,
    stream: TextIO | None = None,
    command: Mapping[str, Any] | None = None,
) -> Report:
    """Evaluates a policy and writes a folder of figures, samples and a page.

    Ray is started on this machine if it does not run yet, and stopped again then.

    Args:
        policy: folder, hub id or `embedded:<name>`, or fields of `PolicySettings`.
        benchmarks: names of `CARDS`, or benchmarks.
        sampling: fields of `SamplingSettings`.
        judge: fields of `JudgeSettings`; None: reasoning is not judged.
        out: a new folder, or with `resume` that of an evaluation that was stopped.
        data_dir: see `load_benchmark`.
        limit: ask only so many first problems of each benchmark.
        resume: keep the samples that are there and ask for the others.
        stream: where progress is shown; standard error by default.
        command: plain data, kept for `stored_command`.

    Returns:
        The figures.

    Raises:
        ValueError: a setting cannot work, or differs from what is resumed.
        RuntimeError: engines were lost three times with the same work.
    """
    policy = {"model": policy} if isinstance(policy, str) else policy
    if isinstance(policy, Mapping):
        policy = settings_of(PolicySettings, "policy", policy)
    if not isinstance(sampling, SamplingSettings):
        sampling = settings_of(SamplingSettings, "sampling", sampling or {})
    if isinstance(judge, Mapping):
        judge = settings_of(JudgeSettings, "judge", judge)
    chosen = [
        load_benchmark(one, data_dir) if isinstance(one, str) else one
        for one in benchmarks
    ]
    folder = Path(out)
    _check_folder(folder, resume)
    plan = make_plan(policy, [one.first(limit) for one in chosen], sampling, judge)
    if resume:
        _check_unchanged(folder, plan)
    stored = _store(folder, plan, command)
    with started_ray(policy):
        return _Evaluation(plan, folder, stream).run(stored)


def _store(
    folder: Path, plan: Plan, command: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Writes what `--resume` compares with, before anything else; or reads it."""
    if not (folder / SETTINGS_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        new = {"command": command, "record": plan.record, "engines": list[Any]()}
        _write_settings(folder, new)
    for one in (folder, folder / "samples"):
        remove_leftovers(one)
    return _read_settings(folder)


def _write_settings(folder: Path, stored: Mapping[str, Any]) -> None:
    write_text(folder / SETTINGS_FILE, json.dumps(stored, indent=1) + "\n")


def _read_settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / SETTINGS_FILE).read_text("utf-8"))
    return found


def stored_command(folder: Path) -> dict[str, Any] | None:
    """Returns what an evaluation was asked for, if by a command.

    Raises:
        FileNotFoundError: the folder holds no evaluation.
    """
    _check_folder(folder, resume=True)
    command: dict[str, Any] | None = _read_settings(folder)["command"]
    return command


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / SETTINGS_FILE).is_file():
        raise FileNotFoundError(
            f"`--resume` ({folder}) must be the folder of an evaluation, and has no "
            f"{SETTINGS_FILE}. Set what --out was."
        )
    if resume or not folder.exists():
        return
    # What begins with a dot a killed process was writing.
    if not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir()):
        raise ValueError(
            f"`--out` ({folder}) must be a new or an empty folder, because nothing in "
            f"it is to be lost. Go on with --resume {folder}, or set another one."
        )


def _check_unchanged(folder: Path, plan: Plan) -> None:
    changes = differences(_read_settings(folder)["record"], plan.record)
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise ValueError(
            f"the evaluation of {folder} must not change when it is resumed, because "
            f"its figures would be those of no policy:\n{listed}\nOnly the engines "
            "may. Leave these as they were, or set another --out."
        )


@contextmanager
def started_ray(policy: PolicySettings) -> Iterator[None]:
    """Starts Ray on this machine, or joins a cluster, unless it runs already."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    # An engine without CPUs would wait for them without end; and one is the judge's.
    needed = int(np.ceil(policy.engines * policy.num_cpus)) + 1
    cpus = {"num_cpus": max(os.cpu_count() or 1, needed)} if address == "local" else {}
    ray.init(
        address=address,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        **cpus,
    )
    try:
        yield
    finally:
        ray.shutdown()


class _Evaluation:
    """Samples on engines; verifies and judges beside that, in a thread each.

    Args:
        plan: what is asked.
        folder: of its files.
        stream: see `evaluate`.
    """

    def __init__(self, plan: Plan, folder: Path, stream: TextIO | None):
        self._plan, self._folder, self._stream = plan, folder, stream
        self._files = [BenchmarkFiles(folder, a.benchmark.name) for a in plan.asked]
        # Answers are verified, and compared for votes, in different threads.
        self._verifiers = threading.Lock()
        self._tasks = [
            _Task(i, key) for i, asked in enumerate(plan.asked) for key in asked.keys
        ]
        # How many samples of a problem are still to come.
        self._missing = Counter(
            (task.benchmark, task.key.problem)
            for task in self._tasks
            if self._is_missing(task)
        )
        self._judges: list[ReasoningJudge | None] = [None] * len(plan.asked)
        # A slow judge must not keep samples from being written.
        self._verifying, self._judging = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._verified: deque[Future[None]] = deque()
        self._judged: deque[Future[None]] = deque()

    def run(self, stored: dict[str, Any]) -> Report:
        """Asks for what is missing, and writes the report.

        Args:
            stored: content of the settings' file; engines are added to it.
        """
        with ExitStack() as stack:
            for executor in (self._verifying, self._judging):
                stack.callback(executor.shutdown, cancel_futures=True)
            unjudged = self._unjudged()
            if unjudged:
                self._judges = make_judges(self._plan, stack)
            bar = ProgressBar(
                len(self._tasks), first=self._num_done(), stream=self._stream
            )
            stack.enter_context(bar)
            # Whole already, but the process was stopped before they were judged.
            left = [one for one in unjudged if not self._missing[one]]
            for i in range(0, len(left), _JUDGED_TOGETHER):
                self._have_judged(left[i : i + _JUDGED_TOGETHER])
            if self._missing.total():
                pool = EnginePool(self._plan.engine, self._plan.policy.engines)
                stack.callback(pool.stop)
                facts = pool.facts()
                if facts not in stored["engines"]:
                    stored["engines"].append(facts)
                    _write_settings(self._folder, stored)
                self._sample(pool, bar)
            self._collect(bar, wait=True)
        for files in self._files:
            files.finish()
        return write_report(
            self._plan, self._folder, self._files, engines=stored["engines"]
        )

    def _unjudged(self) -> list[tuple[int, int]]:
        """Returns benchmark and number of each problem without verdicts."""
        return [
            (i, problem)
            for i, (files, asked) in enumerate(
                zip(self._files, self._plan.asked, strict=True)
            )
            for problem in range(len(asked.prompts))
            if problem not in files.verdicts
        ]

    def _num_done(self) -> int:
        return len(self._tasks) - self._missing.total()

    def _is_missing(self, task: _Task) -> bool:
        return task.key not in self._files[task.benchmark].samples

    def _sample(self, pool: EnginePool, bar: ProgressBar) -> None:
        """Has the engines sample, and what comes verified and judged beside that."""
        blocks = self._blocks()
        tasks = [task for block in blocks for task, _ in block]
        for finished in pool.sample([[r for _, r in block] for block in blocks]):
            answers = [(tasks[one.number], one) for one in finished]
            self._verified.append(self._verifying.submit(self._verify, answers))
            self._collect(bar)

    def _collect(self, bar: ProgressBar, *, wait: bool = False) -> None:
        """Raises what went wrong in the threads, and shows how far they are."""
        # Those that verify first: they submit what is judged.
        for futures in (self._verified, self._judged):
            while futures and (wait or futures[0].done()):
                futures.popleft().result()
                bar.show(self._num_done())

    def _blocks(self) -> list[list[tuple[_Task, Request]]]:
        """What is asked for: blocks of tasks with their requests, each for one engine.

        A transformers engine decodes a block as one batch. Products of other batches
        round otherwise; so blocks are always the same, and one is asked for as a whole
        even if only a part is missing. vLLM makes its own batches.
        """
        plan = self._plan
        requests = [
            (task, plan.asked[task.benchmark].request(task.key, plan.sampling))
            for task in self._tasks
        ]
        # Prompts of like length share a batch, so that little of it is padding.
        requests.sort(
            key=lambda r: (
                r[1].params.temperature,
                r[1].params.max_response_tokens,
                len(r[1].prompt),
                r[0],
            )
        )
        if plan.policy.generator == "vllm":
            return [[pair] for pair in requests if self._is_missing(pair[0])]
        blocks = []
        for _, alike in itertools.groupby(requests, lambda pair: pair[1].params):
            rows = iter(alike)
            while block := list(itertools.islice(rows, plan.policy.batch_size)):
                blocks.append(block)
        return [b for b in blocks if any(self._is_missing(task) for task, _ in b)]

    def _verify(self, answers: Sequence[tuple[_Task, Finished]]) -> None:
        """Verifies and writes new samples, and has problems judged that are whole."""
        whole = []
        for benchmark, found in _by_benchmark(
            (task.benchmark, (task.key, one))
            for task, one in answers
            if self._is_missing(task)
        ):
            samples = self._samples(self._plan.asked[benchmark], found)
            self._files[benchmark].add_samples(samples)
            for sample in samples:
                self._missing[benchmark, sample.problem] -= 1
                if not self._missing[benchmark, sample.problem]:
                    whole.append((benchmark, sample.problem))
        if whole:
            self._have_judged(whole)

    def _samples(
        self, asked: Asked, found: Sequence[tuple[SampleKey, Finished]]
    ) -> list[Sample]:
        """Verifies responses; timeouts and errors are tried once more."""
        plan = self._plan
        judge = ResponseJudge(plan.tokenizer, plan.splitter, None, asked.verifier)
        problems = [asked.benchmark.problems[key.problem] for key, _ in found]
        with self._verifiers:
            judged, _ = judge.judge(problems, [], [one.token_ids for _, one in found])
        samples = []
        for (key, one), problem, response in zip(found, problems, judged, strict=True):
            verdict = response.verdict
            if verdict is not None and verdict.outcome in ("timeout", "error"):
                with self._verifiers:
                    verdict = judge.verify_one(problem, response.text)
            sample = Sample(
                **key._asdict(),
                problem_id=problem.problem_id,
                seed=asked.request(key, plan.sampling).seed,
                token_ids=one.token_ids.tolist(),
                terminated=one.terminated,
                text=response.text,
                answer=None if verdict is None else verdict.answer,
                outcome=None if verdict is None else verdict.outcome,
            )
            samples.append(sample)
        return samples

    def _have_judged(self, problems: Sequence[tuple[int, int]]) -> None:
        self._judged.append(self._judging.submit(self._judge, problems))

    def _judge(self, problems: Sequence[tuple[int, int]]) -> None:
        """Judges the reasoning, and puts answers into classes, of whole problems."""
        for benchmark, numbers in _by_benchmark(problems):
            asked, files = self._plan.asked[benchmark], self._files[benchmark]
            tasks = [
                JudgeTask(
                    asked.benchmark.problems[number],
                    asked.prompts[number],
                    [files.samples[key] for key in asked.keys_of(number)],
                )
                for number in numbers
            ]
            judge = self._judges[benchmark]
            found = judge.judge(tasks) if judge else [t.verdicts() for t in tasks]
            for one in found:
                keys = asked.sampled_keys(one.problem)
                answers = [files.samples[key].answer for key in keys]
                with self._verifiers:
                    one.classes = vote_classes(
                        answers, partial(same_value, asked.verifier)
                    )
            files.add_verdicts(found)


def _by_benchmark(pairs: Iterable[tuple[int, _T]]) -> Iterable[tuple[int, list[_T]]]:
    found: dict[int, list[_T]] = {}
    for benchmark, one in pairs:
        found.setdefault(benchmark, []).append(one)
    return found.items()
