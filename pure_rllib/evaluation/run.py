"""An evaluation from its settings to its folder, at once or in several goes."""

import itertools
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import ray

from pure_rllib.envs.vector import ResponseJudge
from pure_rllib.evaluation.benchmarks import Benchmark, load_benchmark
from pure_rllib.evaluation.engines import EnginePool, EngineSettings
from pure_rllib.evaluation.estimators import vote_classes
from pure_rllib.evaluation.judges import (
    JudgeTask,
    Reasoning,
    ReasoningJudge,
    SameValue,
    make_judges,
)
from pure_rllib.evaluation.plan import (
    Asked,
    Plan,
    differences,
    make_plan,
)
from pure_rllib.evaluation.report import Report, write_report
from pure_rllib.evaluation.samples import (
    BenchmarkFiles,
    ProblemVerdicts,
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
    path = folder / SETTINGS_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        stored: dict[str, Any] = {"command": command, "record": plan.record}
        stored["engines"] = []
        write_text(path, json.dumps(stored, indent=1) + "\n")
    for one in (folder, folder / "samples"):
        remove_leftovers(one)
    return _read_settings(folder)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
    """Samples on engines; verifies and judges beside that; writes what it is told.

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
        self._judges: list[ReasoningJudge | None] = [None] * len(plan.asked)
        # How many samples of a problem are still to come.
        self._missing: dict[tuple[int, int], int] = defaultdict(int)
        for task in self._tasks:
            key = (task.benchmark, task.key.problem)
            self._missing[key] += task.key not in self._files[task.benchmark].samples

    def run(self, stored: dict[str, Any]) -> Report:
        """Asks for what is missing, and writes the report.

        Args:
            stored: content of the settings' file; engines are added to it.
        """
        with ExitStack() as stack:
            # One thread each; a slow judge must not keep samples from being written.
            verify, judge = (
                stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2)
            )
            for executor in (verify, judge):
                stack.callback(executor.shutdown, cancel_futures=True)
            if any(len(f.verdicts) < len(a.prompts) for f, a in self._pairs()):
                self._judges = make_judges(self._plan, stack)
            bar = stack.enter_context(
                ProgressBar(
                    len(self._tasks), first=self._num_done(), stream=self._stream
                )
            )
            if self._num_done() < len(self._tasks):
                pool = self._engines(stack)
                facts = pool.facts()
                if facts not in stored["engines"]:
                    stored["engines"].append(facts)
                    text = json.dumps(stored, indent=1) + "\n"
                    write_text(self._folder / SETTINGS_FILE, text)
                self._sample(pool, verify, judge, bar)
            self._judge_rest()
        for files in self._files:
            files.finish()
        return write_report(
            self._plan, self._folder, self._files, engines=stored["engines"]
        )

    def _pairs(self) -> Iterator[tuple[BenchmarkFiles, Asked]]:
        return zip(self._files, self._plan.asked, strict=True)

    def _num_done(self) -> int:
        return len(self._tasks) - sum(self._missing.values())

    def _engines(self, stack: ExitStack) -> EnginePool:
        plan = self._plan
        settings = EngineSettings.of(
            plan.policy,
            model=plan.folder,
            pad_token_id=plan.pad_token_id,
            eos_token_ids=plan.eos_token_ids,
            max_model_len=plan.max_model_len,
        )
        pool = EnginePool(settings, plan.policy.engines)
        stack.callback(pool.stop)
        return pool

    def _sample(
        self,
        pool: EnginePool,
        verify: ThreadPoolExecutor,
        judge: ThreadPoolExecutor,
        bar: ProgressBar,
    ) -> None:
        """Has the engines sample, and everything verified, judged and written."""
        blocks = self._blocks()
        tasks = [task for block in blocks for task, _ in block]
        verifying: list[Future[list[tuple[_Task, Sample]]]] = []
        judging: list[Future[list[tuple[int, ProblemVerdicts]]]] = []
        requests = [[request for _, request in block] for block in blocks]
        for finished in itertools.chain(pool.sample(requests), [None]):
            if finished is not None:
                answers = [(tasks[one.number], one) for one in finished]
                verifying.append(verify.submit(self._verify, answers))
            # Once all is sampled there is nothing left to do beside waiting.
            while verifying and (finished is None or verifying[0].done()):
                whole = self._write(verifying.pop(0).result())
                judging += [judge.submit(self._judge, whole)] if whole else []
                bar.show(self._num_done())
            while judging and judging[0].done():
                self._write_verdicts(judging.pop(0).result())
        for future in judging:
            self._write_verdicts(future.result())

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
        size = EngineSettings.batch_size(plan.policy)
        blocks = []
        for _, alike in itertools.groupby(requests, lambda pair: pair[1].params):
            rows = iter(alike)
            while block := list(itertools.islice(rows, size)):
                blocks.append(block)
        return [b for b in blocks if any(self._is_missing(task) for task, _ in b)]

    def _is_missing(self, task: _Task) -> bool:
        return task.key not in self._files[task.benchmark].samples

    def _verify(
        self, answers: Sequence[tuple[_Task, Finished]]
    ) -> list[tuple[_Task, Sample]]:
        """Verifies responses; timeouts and errors are tried once more."""
        samples = []
        for benchmark, group in itertools.groupby(
            sorted(answers, key=lambda pair: pair[0]), lambda pair: pair[0].benchmark
        ):
            pairs = list(group)
            asked = self._plan.asked[benchmark]
            judge = ResponseJudge(
                self._plan.tokenizer, self._plan.splitter, None, asked.verifier
            )
            problems = [asked.benchmark.problems[t.key.problem] for t, _ in pairs]
            with self._verifiers:
                judged, _ = judge.judge(
                    problems, [], [one.token_ids for _, one in pairs], score=False
                )
            for (task, one), problem, found in zip(
                pairs, problems, judged, strict=True
            ):
                verdict = found.verdict
                if verdict is not None and verdict.outcome in ("timeout", "error"):
                    with self._verifiers:
                        verdict = judge.verify_one(problem, found.text)
                key = task.key
                request = asked.request(key, self._plan.sampling)
                sample = Sample(
                    problem=key.problem,
                    problem_id=problem.problem_id,
                    decoding=key.decoding,
                    number=key.number,
                    seed=request.seed,
                    token_ids=one.token_ids.tolist(),
                    terminated=one.terminated,
                    text=found.text,
                    answer=None if verdict is None else verdict.answer,
                    outcome=None if verdict is None else verdict.outcome,
                )
                samples.append((task, sample))
        return samples

    def _write(self, found: Sequence[tuple[_Task, Sample]]) -> list[tuple[int, int]]:
        """Writes new samples; returns the problems that are whole now."""
        whole = []
        for benchmark, group in itertools.groupby(
            [pair for pair in found if self._is_missing(pair[0])],
            lambda pair: pair[0].benchmark,
        ):
            samples = [sample for _, sample in group]
            self._files[benchmark].add_samples(samples)
            for sample in samples:
                self._missing[benchmark, sample.problem] -= 1
                if not self._missing[benchmark, sample.problem]:
                    whole.append((benchmark, sample.problem))
        return whole

    def _judge(
        self, problems: Sequence[tuple[int, int]]
    ) -> list[tuple[int, ProblemVerdicts]]:
        """Judges the reasoning, and puts answers into classes, of whole problems."""
        verdicts = []
        for benchmark, group in itertools.groupby(sorted(problems), lambda p: p[0]):
            tasks = [self._judge_task(benchmark, problem) for _, problem in group]
            judge = self._judges[benchmark]
            found = judge.judge(tasks) if judge else [Reasoning() for _ in tasks]
            same = SameValue(self._plan.asked[benchmark].verifier)
            for task, reasoning in zip(tasks, found, strict=True):
                sampled = [s for s in task.samples if s.decoding == "sampled"]
                with self._verifiers:
                    classes = vote_classes([s.answer for s in sampled], same)
                one = ProblemVerdicts(
                    problem=task.samples[0].problem,
                    classes=classes,
                    reasoning=reasoning.verdicts,
                    not_judged=reasoning.not_judged,
                    step_scores=reasoning.step_scores,
                )
                verdicts.append((benchmark, one))
        return verdicts

    def _judge_task(self, benchmark: int, problem: int) -> JudgeTask:
        asked, samples = self._plan.asked[benchmark], self._files[benchmark].samples
        return JudgeTask(
            asked.benchmark.problems[problem],
            asked.prompts[problem],
            [samples[key] for key in asked.keys_of(problem)],
        )

    def _write_verdicts(self, found: Sequence[tuple[int, ProblemVerdicts]]) -> None:
        for benchmark, group in itertools.groupby(found, lambda pair: pair[0]):
            self._files[benchmark].add_verdicts([one for _, one in group])

    def _judge_rest(self) -> None:
        """Judges what an evaluation that was stopped had sampled and not judged."""
        rest = iter(
            [
                (benchmark, problem)
                for benchmark, asked in enumerate(self._plan.asked)
                for problem in range(len(asked.prompts))
                if problem not in self._files[benchmark].verdicts
            ]
        )
        while some := list(itertools.islice(rest, _JUDGED_TOGETHER)):
            self._write_verdicts(self._judge(some))
