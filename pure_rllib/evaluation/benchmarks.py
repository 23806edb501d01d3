r"""Benchmarks: cards of the known ones, own files, and any environment.

A card says where a benchmark's problems are and how their gold answers are read; the
usual rules of `load_problems` find no answer in some, and a wrong one in others.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym

import pure_rllib.envs  # noqa: F401 (registers the environments' ids)
from pure_rllib.data.problems import Problem, load_problems
from pure_rllib.data.prompts import PromptTemplate
from pure_rllib.envs.token_env import TokenEnv
from pure_rllib.rewards.base import AnyVerifier, StepScorer
from pure_rllib.rollouts.env_summary import token_env_of
from pure_rllib.setting_types import Count, check_setting

_BENCHMARK_SAMPLES = 8
"""Samples per problem where no card says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Problems with gold answers, and what belongs to asking them.

    Attributes:
        name: of its metrics and files.
        problems: in their order.
        num_samples: per problem, where the settings name no number.
        source: where the problems come from.
        notes: what a reader of its figures should know.
        gold_fixes: problem id -> the gold answer that stands for a misprinted one.
        verifier: compares answers; None: Math-Verify.
        step_checker: knows exactly which steps are right, or None.
        template: of prompts; None: the settings'.
        max_response_tokens: budget; None: the settings'.
        training_prompts: of an environment, to be looked through for these problems.
        training_prms: of an environment: what its process rewards come from.
    """

    name: str
    problems: Sequence[Problem]
    num_samples: int = _BENCHMARK_SAMPLES
    source: str = ""
    notes: tuple[str, ...] = ()
    gold_fixes: Mapping[str, str] = field(default_factory=dict)
    verifier: AnyVerifier | None = None
    step_checker: StepScorer | None = None
    template: PromptTemplate | None = None
    max_response_tokens: int | None = None
    training_prompts: frozenset[str] = frozenset()
    training_prms: tuple[str, ...] = ()

    @property
    def data_sha256(self) -> str:
        """Hash of what is asked and of what is taken for right."""
        rows = [(p.problem_id, p.prompt, p.answer, p.history) for p in self.problems]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def num_trained(self) -> int:
        """Problems that are training prompts."""
        return sum(p.prompt in self.training_prompts for p in self.problems)

    def first(self, limit: int | None) -> "Benchmark":
        """Returns the benchmark with so many first problems."""
        check_setting("limit", limit, Count | None)
        return replace(self, problems=list(self.problems)[:limit])


@dataclass(frozen=True, kw_only=True)
class Card:
    """How a known benchmark is read.

    Attributes:
        rows: of the file.
        sha256: of the file that PURE evaluates with.
        num_samples: per problem; more where there are few problems.
        licence: of the problems, as far as it is stated.
        fields: arguments of `load_problems` for the file.
        hub: arguments of `load_problems` for the Hugging Face hub.
        gold_fixes: see `Benchmark`.
        notes: see `Benchmark`.
    """

    rows: int
    sha256: str
    num_samples: int
    licence: str
    fields: Mapping[str, str]
    hub: Mapping[str, str]
    gold_fixes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_PROBLEM = {"prompt_field": "problem", "answer_field": "answer"}
_QUESTION = {"prompt_field": "question", "answer_field": "answer"}
_OLYMPIAD = {"prompt_field": "question", "answer_field": "final_answer"}
_GSM8K = {"prompt_field": "question", "answer_from_solution": "answer"}
_NONE_STATED = "none stated for the data; problems of MAA"
CARDS: Mapping[str, Card] = MappingProxyType(
    {
        "aime24": Card(
            rows=30,
            sha256="af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac",
            num_samples=32,
            licence=_NONE_STATED,
            fields=_PROBLEM,
            hub={"source": "HuggingFaceH4/aime_2024", "split": "train", **_PROBLEM},
        ),
        "amc23": Card(
            rows=40,
            sha256="43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4",
            num_samples=32,
            licence=_NONE_STATED,
            fields=_PROBLEM,
            hub={"source": "math-ai/amc23", "split": "test", **_QUESTION},
            notes=("40 of the 50 problems of AMC 12A and 12B of 2023",),
        ),
        "math500": Card(
            rows=500,
            sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
            num_samples=8,
            licence="MIT (split of PRM800K)",
            fields=_PROBLEM,
            hub={"source": "HuggingFaceH4/MATH-500", "split": "test", **_PROBLEM},
        ),
        "minerva_math": Card(
            rows=272,
            sha256="0e656b430d3a0a1dab6aa853f453ba3805e28e2cabe4fc72486a897cc09d8ba2",
            num_samples=4,
            licence="none stated for the data; problems of MIT OpenCourseWare",
            fields={"prompt_field": "problem", "answer_from_solution": "solution"},
            hub={"source": "math-ai/minervamath", "split": "test", **_QUESTION},
            gold_fixes={
                "5": r"\arcsin(10/13)",  # np.arcsin(10/13)
                "38": "-1/3",  # -1./3
                "49": "-3/2",  # -3./2
            },
            notes=(
                "the 272 problems of OpenCourseWare; elsewhere the name also stands "
                "for MATH",
            ),
        ),
        "olympiadbench": Card(
            rows=675,
            sha256="bb8c1e38a16ea9eacb77530315a674d883f267fbff79183effc53681b4fcc416",
            num_samples=4,
            licence="none stated for the data",
            fields=_OLYMPIAD,
            hub={"source": "math-ai/olympiadbench", "split": "test", **_OLYMPIAD},
            gold_fixes={
                "2349": "221,8",  # $221,$8$
                "2045": "(0,4]",  # t(0,4]
            },
        ),
        "gsm8k": Card(
            rows=1319,
            sha256="9f098df7ff4522078d6ccec27a5c38a454790fdb51131bedfaa0e490070d5394",
            num_samples=1,
            licence="MIT",
            fields=_GSM8K,
            hub={
                "source": "openai/gsm8k",
                "subset": "main",
                "split": "test",
                **_GSM8K,
            },
        ),
    }
)
"""The known benchmarks by name."""
PAPER = ("aime24", "amc23", "math500", "minerva_math", "olympiadbench")
"""The five that PURE is reported on."""


def load_benchmark(name: str, data_dir: str | Path | None = None) -> Benchmark:
    """Loads a known benchmark.

    Args:
        name: one of `CARDS`.
        data_dir: a folder with `NAME/test.jsonl` or `NAME.jsonl`; None: the hub.

    Raises:
        ValueError: an unknown name; the message lists the known.
        FileNotFoundError: the folder has no such file, or the hub cannot be reached.
    """
    if name not in CARDS:
        raise ValueError(
            f"`benchmarks` ({name!r}) must be among {', '.join(CARDS)}, or `paper` for "
            f"the first five, because a card says how answers are read. Give a file of "
            "your own with --problems FILE; processes are judged by `pure-rllib "
            "prm-eval` (ProcessBench, PRMBench)."
        )
    card = CARDS[name]
    notes = [f"licence: {card.licence}", *card.notes]
    if data_dir is None:
        arguments = dict(card.hub)
        source = f"{arguments['source']} on the hub"
    else:
        path = _file_of(name, Path(data_dir).expanduser())
        arguments, source = {"source": str(path), **card.fields}, str(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != card.sha256:
            notes.append("the file is not the one that PURE evaluates with")
    problems = list(load_problems(**arguments))  # type: ignore[arg-type]
    if len(problems) != card.rows:
        notes.append(f"{len(problems)} problems in place of {card.rows}")
    fixes = card.gold_fixes if data_dir is not None else {}
    return Benchmark(
        name=name,
        problems=[
            replace(p, answer=fixes[p.problem_id]) if p.problem_id in fixes else p
            for p in problems
        ],
        num_samples=card.num_samples,
        source=source,
        notes=tuple(notes),
        gold_fixes=fixes,
    )


def _file_of(name: str, folder: Path) -> Path:
    candidates = [folder / name / "test.jsonl", folder / f"{name}.jsonl"]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"`data_dir` ({folder}) must hold {' or '.join(map(str, candidates))}, because "
        f"the problems of `{name}` are read there. Set another folder, or leave it out "
        "to read from the hub."
    )


def file_benchmark(source: str | Mapping[str, Any]) -> Benchmark:
    """Makes a benchmark of an own file.

    Args:
        source: a file, or arguments of `load_problems`; beside them `name` and
            `num_samples` of the benchmark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or has no problem.
    """
    given: dict[str, Any] = (
        {"source": source} if isinstance(source, str) else dict(source)
    )
    if "source" not in given:
        raise ValueError(
            f"`problems` ({given}) must name a `source`, because problems are read "
            "from it. Set it to a file, a folder or the id of a data set."
        )
    name = given.pop("name", Path(given["source"]).stem)
    num_samples = given.pop("num_samples", _BENCHMARK_SAMPLES)
    problems = list(load_problems(**given))
    return Benchmark(
        name=name,
        problems=problems,
        num_samples=num_samples,
        source=str(given["source"]),
    )


def environment_benchmark(env: str, env_config: Mapping[str, Any]) -> Benchmark:
    """Makes a benchmark of an environment's held-out problems.

    It brings prompts, budget and verifier; without held-out problems the training ones
    are asked.

    Args:
        env: an id that is registered with Gymnasium, or package.module.Class.
        env_config: its arguments.

    Raises:
        ValueError: there is no such environment, it is of another kind, or an argument
            does not fit.
    """
    made = _token_env(env, env_config)
    held_out = made.eval_problems is not None
    source = made.eval_problems if made.eval_problems is not None else made.problems
    prompts = [source[i] for i in range(len(source))]
    # Held-out problems that were trained on all the same; not where all were.
    trained = (
        {made.problems[i].prompt for i in range(len(made.problems))}
        if held_out
        else set()
    )
    made.close()
    return Benchmark(
        name=env.rpartition("/")[2].rpartition(".")[2].removesuffix("-v0").lower(),
        problems=prompts,
        source=env if held_out else f"{env} (training problems: none are held out)",
        verifier=made.judge.verifier,
        step_checker=made.step_checker,
        template=made.prompt_template,
        max_response_tokens=made.max_response_tokens,
        training_prompts=frozenset(trained),
        training_prms=made.prms,
    )


def _token_env(env: str, env_config: Mapping[str, Any]) -> TokenEnv:
    try:
        if env in gym.registry:
            made: Any = gym.make(env, disable_env_checker=True, **env_config)
        else:
            module, _, name = env.rpartition(".")
            # As RLlib makes it.
            made = getattr(importlib.import_module(module), name)(dict(env_config))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        ours = ", ".join(i for i in gym.registry if i.startswith("pure_rllib/"))
        raise ValueError(
            f"`env` ({env}) must be an id that is registered with Gymnasium (ours: "
            f"{ours}) or package.module.Class, and take `env_config` "
            f"({dict(env_config)}); because: {error}."
        ) from error
    return token_env_of(made, env)
