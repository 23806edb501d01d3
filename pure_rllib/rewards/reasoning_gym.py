"""Tasks of the package reasoning-gym: their problems, and the scores of answers."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from importlib.util import find_spec
from time import perf_counter
from typing import Any, Literal

from pure_rllib.data.boxed import last_box
from pure_rllib.data.problems import Problem
from pure_rllib.rewards.base import Verdict
from pure_rllib.rewards.verifier.task_process import make_dataset
from pure_rllib.rewards.verifier.workers import (
    ENVIRONMENT,
    PACKAGE_ROOT,
    Pair,
    PooledVerifier,
)
from pure_rllib.setting_types import Count, PositiveFloat

logger = logging.getLogger(__name__)

AnswerForm = Literal["tag", "box", "response"]
ANY_ANSWER = "(any that the task accepts)"
"""Stands for the gold answer where a task has none and judges each answer itself."""

_SLOW_S = 10.0
_WRITE_ITEMS = """
import sys
sys.path.append(sys.argv[1])
from pure_rllib.rewards.verifier.task_process import write_items
write_items(sys.argv[2])
"""


def known_tasks() -> list[str]:
    """Returns the names of all tasks.

    Raises:
        ValueError: reasoning-gym is not installed.
    """
    if find_spec("reasoning_gym") is None:
        raise ValueError(
            "`env` (pure_rllib/ReasoningGym-v0) needs the package reasoning-gym, which "
            "is not installed. Run `pip install 'pure-rllib[reasoning-gym]'`."
        )
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


@dataclass(frozen=True)
class Task:
    """A data set of reasoning-gym.

    Attributes:
        name: of the task there; "composite" mixes those in `config["datasets"]`.
        size: number of items.
        seed: item i depends on `seed + i`: neighbouring seeds share all items but one.
        config: other fields of the task's config.

    Raises:
        ValueError: there is no such task, or the config does not fit it.
    """

    name: str
    size: int
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_config("task", self.name, self.config)
        try:
            make_dataset(**json.loads(self.setting))
        except (AssertionError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"`config` ({dict(self.config)}) must fit the task {self.name}; "
                f"because it says: {error}. Set it to fields of its config."
            ) from error

    @property
    def setting(self) -> str:
        """The arguments of `make_dataset` as JSON."""
        return json.dumps(
            {
                "task": self.name,
                "size": self.size,
                "seed": self.seed,
                "config": dict(self.config),
            }
        )

    def problems(self) -> list[Problem]:
        """Makes all items, in a process of its own.

        Returns:
            Problems with the item's number in their metadata.

        Raises:
            RuntimeError: the task fails.
        """
        problems: list[Problem] = []
        start, is_slow = 0.0, False
        # A file, not a pipe: nobody has to read it for the process to go on.
        with tempfile.TemporaryFile() as stderr:
            command = [sys.executable, "-P", "-c", _WRITE_ITEMS, PACKAGE_ROOT]
            process = subprocess.Popen(
                [*command, self.setting],
                env={**os.environ, **ENVIRONMENT},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            assert process.stdout is not None, "asked for"
            with process:
                for index, line in enumerate(process.stdout):
                    # The imports before the first item say nothing about the others.
                    start = start or perf_counter()
                    question, answer = json.loads(line)
                    problems.append(self._problem(index, question, answer))
                    seconds = perf_counter() - start
                    if seconds > _SLOW_S and not is_slow:
                        is_slow = True
                        self._warn_slow(seconds / index)
            if process.returncode:
                stderr.seek(0)
                raise RuntimeError(
                    f"The task {self.name} of reasoning-gym failed at item "
                    f"{len(problems)}:\n{stderr.read().decode(errors='replace')[-2000:]}"
                )
        return problems

    def _problem(self, index: int, question: str, answer: str | None) -> Problem:
        return Problem(
            question,
            ANY_ANSWER if answer is None else answer,
            problem_id=f"{self.name}-{index}",
            metadata={"index": index},
        )

    def _warn_slow(self, seconds: float) -> None:
        logger.warning(
            "The task %s takes %.2g s an item, so that %d items take %.0f s, in each "
            "process that makes the environment. Set `size` lower if that is too long.",
            self.name,
            seconds,
            self.size,
            seconds * self.size,
        )


def _check_config(setting: str, name: str, config: Mapping[str, Any]) -> None:
    """Checks the names of a task and of its config's fields, and of its parts."""
    tasks = known_tasks()
    if name not in tasks:
        near = get_close_matches(str(name), tasks, n=5, cutoff=0.5)
        hint = f"near it are {', '.join(near)}; " if near else ""
        raise ValueError(
            f"`{setting}` ({name}) must be one of reasoning-gym's {len(tasks)} tasks; "
            f"{hint}`pure-rllib envs` lists all."
        )
    from reasoning_gym.factory import DATASETS

    # Size and seed are settings of their own, as both splits are of one data set.
    known = [f for f in fields(DATASETS[name][1]) if f.name not in ("size", "seed")]
    unknown = sorted(set(config) - {f.name for f in known})
    if unknown:
        raise ValueError(
            f"`config` has a key `{unknown[0]}` that {name} does not know; its keys "
            f"are {', '.join(f'{f.name} ({_default(f)})' for f in known)}."
        )
    if name != "composite":
        return
    parts = config.get("datasets")
    if not isinstance(parts, list) or not all(
        isinstance(p, Mapping) and "name" in p for p in parts
    ):
        raise ValueError(
            f"`config.datasets` ({parts!r}) must list what is mixed. Set it to "
            "[{name: leg_counting, weight: 2}, {name: chain_sum, config: {...}}]."
        )
    for part in parts:
        _check_config("config.datasets", part["name"], part.get("config", {}))


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return repr(field.default)
    return (
        repr(field.default_factory()) if field.default_factory is not MISSING else "?"
    )


def answer_in_tag(text: str) -> str | None:
    """Returns what the last `<answer>...</answer>` of a text holds, or None."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end].strip()


ANSWERS: dict[str, Callable[[str], str | None]] = {
    "tag": answer_in_tag,
    "box": last_box,
    "response": str.strip,
}
"""How the answer is found in a response, by the form that is asked for."""


@dataclass(eq=False)
class TaskVerifier(PooledVerifier):
    """Scores answers by their task, in worker processes with a time limit.

    An answer that equals the gold one earns 1.0; else the task's own scorer grades it.
    reasoning-gym's default scorer, which pays for any text that holds the gold answer,
    grades nothing; and what a scorer gives to a text without any answer is worth 0.0.

    Outcomes: `correct` for 1.0; `incorrect`; `no_answer` without an answer, of which
    the task is not asked; `timeout`; `error` where the scorer raised. The last three
    are worth 0.0.

    Attributes:
        setting: of the problems' task.
        answer_form: where the answer stands: in the last `<answer>...</answer>`
            ("tag"), in the last box ("box"), or it is all of the response.
        num_workers: processes that score at the same time.
        time_limit_s: seconds that one answer may take.
        memory_limit_mb: address space of one worker, in MiB.
        start_limit_s: seconds that a worker may take to start.
    """

    setting: str
    answer_form: AnswerForm = "tag"
    num_workers: Count = 1
    time_limit_s: PositiveFloat = 5.0
    memory_limit_mb: Count = 2048
    start_limit_s: PositiveFloat = 120.0

    @property
    def _worker(self) -> tuple[str, str]:
        return "pure_rllib.rewards.verifier.task_process", self.setting

    def verify_problems(
        self, problems: Sequence[Problem], responses: Sequence[str]
    ) -> list[Verdict]:
        """Scores each response; equal answers to one problem once."""
        answers = [ANSWERS[self.answer_form](text) for text in responses]
        keys = [
            (str(problem.metadata["index"]), answer)
            for problem, answer in zip(problems, answers, strict=True)
        ]
        pairs = {key: Pair(key) for key in keys if key[1]}
        with self._alone() as pool:
            pool.check(list(pairs.values()))
        return [
            pairs[key].verdict or Verdict("error") if key[1] else Verdict("no_answer")
            for key in keys
        ]
