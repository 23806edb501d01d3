"""What an evaluation will ask, checked and written down before anything is sampled."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from pure_rllib.credit.steps import StepSplitter
from pure_rllib.data.order import sample_seed
from pure_rllib.data.prompts import PromptTemplate, make_template
from pure_rllib.evaluation.benchmarks import Benchmark
from pure_rllib.evaluation.engines import EngineSettings
from pure_rllib.evaluation.record import record_of, weights_sha256
from pure_rllib.evaluation.samples import SampleKey
from pure_rllib.evaluation.settings import (
    DEFAULT_BUDGET,
    DEFAULT_TEMPLATE,
    JudgeSettings,
    PolicySettings,
    SamplingSettings,
)
from pure_rllib.generation.base import Request, SamplingParams
from pure_rllib.generation.make_generator import check_generator
from pure_rllib.models.ends import eos_ids, pad_id
from pure_rllib.models.loading import check_model_folder, policy_config, resolve_model
from pure_rllib.models.stop_strings import StopStrings
from pure_rllib.rewards.base import AnyVerifier, ProblemVerifier
from pure_rllib.rewards.prm.scoring import context_of
from pure_rllib.rewards.verifier.math_verifier import MathVerifier

NO_LIMIT = 2**31
"""Of tokens, where a model names no context: as good as without end."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One benchmark as it is asked.

    Attributes:
        benchmark: its problems.
        prompts: their token ids.
        template: that made the prompts.
        num_greedy: responses per problem at temperature 0.
        num_sampled: samples per problem.
        max_response_tokens: budget of a response.
        context: of the model; None: as good as without end.
        verifier: compares answers.
    """

    benchmark: Benchmark
    prompts: Sequence[Sequence[int]]
    template: PromptTemplate
    num_greedy: int
    num_sampled: int
    max_response_tokens: int
    context: int | None
    verifier: AnyVerifier

    def greedy_keys(self, problem: int) -> list[SampleKey]:
        """Names the greedy responses to a problem."""
        return [SampleKey(problem, "greedy", i) for i in range(self.num_greedy)]

    def sampled_keys(self, problem: int) -> list[SampleKey]:
        """Names the samples of a problem."""
        return [SampleKey(problem, "sampled", i) for i in range(self.num_sampled)]

    def keys_of(self, problem: int) -> list[SampleKey]:
        """Names all that is asked for of a problem, greedy responses first."""
        return self.greedy_keys(problem) + self.sampled_keys(problem)

    @property
    def keys(self) -> list[SampleKey]:
        """Names all samples that are asked for."""
        return [key for i in range(len(self.prompts)) for key in self.keys_of(i)]

    def budget(self, problem: int) -> int:
        """Response tokens of a problem: less where its prompt leaves less."""
        left = (self.context or NO_LIMIT) - len(self.prompts[problem])
        return min(self.max_response_tokens, left)

    def request(self, key: SampleKey, sampling: SamplingSettings) -> Request:
        """Returns what an engine is asked for a sample."""
        is_greedy = key.decoding == "greedy"
        params = SamplingParams(
            self.budget(key.problem),
            0.0 if is_greedy else sampling.temperature,
            1.0 if is_greedy else sampling.top_p,
        )
        seed = sample_seed(sampling.seed, key.problem, key.number)
        return Request(self.prompts[key.problem], params, seed)


@dataclass(kw_only=True)
class Plan:
    """An evaluation that is ready to be run.

    Attributes:
        policy: its settings.
        sampling: likewise.
        judge: likewise, or None.
        folder: of the policy's files.
        tokenizer: the policy's.
        splitter: where its steps end.
        eos_token_ids: what ends a response.
        stop: strings that do, too.
        asked: the benchmarks.
        warnings: what a reader of the figures must know.
        record: every setting that can change a figure, and hashes of all that is read;
            plain data.
        odd_golds: by benchmark, gold answers that cannot be read.
    """

    policy: PolicySettings
    sampling: SamplingSettings
    judge: JudgeSettings | None
    folder: str
    tokenizer: Any
    splitter: StepSplitter
    eos_token_ids: list[int]
    stop: StopStrings | None
    asked: list[Asked]
    warnings: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    odd_golds: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def engine(self) -> EngineSettings:
        """How an engine for it is made."""
        return EngineSettings(
            policy=replace(self.policy, model=self.folder),
            pad_token_id=pad_id(self.tokenizer, self.eos_token_ids),
            eos_token_ids=self.eos_token_ids,
            stop=self.stop,
            max_model_len=max(
                len(prompt) + asked.budget(i)
                for asked in self.asked
                for i, prompt in enumerate(asked.prompts)
            ),
        )


def make_plan(
    policy: PolicySettings,
    benchmarks: Sequence[Benchmark],
    sampling: SamplingSettings,
    judge: JudgeSettings | None,
) -> Plan:
    """Checks everything that can be checked before a model is loaded.

    Args:
        policy: what is evaluated.
        benchmarks: what it is asked; at least one.
        sampling: how.
        judge: who judges reasoning; None: nobody.

    Raises:
        ValueError: a setting cannot work; see `docs/evaluation.md`.
    """
    _check_benchmarks(benchmarks)
    check_generator(
        policy.generator, policy.generator_kwargs, temperature=1.0, top_p=1.0
    )
    folder = local_folder(policy.model, "policy.model")
    config = policy_config(folder, trust_remote_code=policy.trust_remote_code)
    text_config = config.get_text_config()
    if policy.dtype == "auto":
        dtype: Any = str(config.dtype or torch.float32).removeprefix("torch.")
        policy = replace(policy, dtype=dtype)
    tokenizer = _load_tokenizer(folder, policy.trust_remote_code)
    vocab_size = max(len(tokenizer), text_config.vocab_size)
    splitter, stop = StepSplitter.from_tokenizer(tokenizer, vocab_size), None
    if sampling.stop:
        stop = StopStrings(tokenizer, sampling.stop, vocab_size)
        splitter = splitter.ending_with(stop.begins_at)
    # One for all: its workers and its cache are shared.
    shared = MathVerifier(num_workers=max(1, min(8, (os.cpu_count() or 1) // 4)))
    plan = Plan(
        policy=policy,
        sampling=sampling,
        judge=judge,
        folder=folder,
        tokenizer=tokenizer,
        splitter=splitter,
        eos_token_ids=sorted(eos_ids(tokenizer)),
        stop=stop,
        asked=[
            _ask(one, tokenizer, sampling, shared, context_of(config))
            for one in benchmarks
        ],
    )
    for asked in plan.asked:
        _check_context(asked, plan)
        _check_golds(asked, plan)
        _check_overlap(asked, plan)
    hashes = {"weights": weights_sha256(folder)}
    if judge is not None:
        hashes |= _check_judge(judge, hashes["weights"], plan)
    plan.record = record_of(plan, hashes)
    return plan


def _check_benchmarks(benchmarks: Sequence[Benchmark]) -> None:
    names = [one.name for one in benchmarks]
    if not names:
        raise ValueError(
            "`benchmarks` ([]) must name at least one, because nothing else is asked. "
            "Set --benchmarks gsm8k, --problems FILE or --env ID."
        )
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"`benchmarks` ({names}) must have different names, because files are "
            f"called so, and {doubled} stands twice. Give a file's problems a `name`."
        )
    for one in benchmarks:
        if not one.problems:
            raise ValueError(f"`{one.name}` (0 problems) must hold a problem.")
        if all(problem.answer is None for problem in one.problems):
            raise ValueError(
                f"`{one.name}` ({len(one.problems)} problems of {one.source}) must "
                "have gold answers, because responses are compared with them, and it "
                "has none. Name their field: problems: [{source: FILE, answer_field: "
                "FIELD}], or answer_from_solution: FIELD."
            )


def local_folder(model: str, setting: str) -> str:
    """Returns a model's folder; that of a hub id is downloaded, or known already.

    Raises:
        ValueError: there is no such model.
    """
    files = check_model_folder(resolve_model(model), setting)
    if files.is_local:
        return files.path
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(files.path, ignore_patterns=["*.bin", "*.pt"]))
    except OSError as error:
        raise ValueError(
            f"`{setting}` ({model}) must be a folder in Hugging Face layout or the id "
            f"of a model that the hub gives: {error}. Set it to a folder."
        ) from error


def _load_tokenizer(folder: str, trust_remote_code: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`policy.model` ({folder}) must hold a tokenizer, because prompts are "
            f"encoded with it: {error}. Save it beside the model."
        ) from error


def _ask(
    benchmark: Benchmark,
    tokenizer: Any,
    sampling: SamplingSettings,
    verifier: AnyVerifier,
    context: int | None,
) -> Asked:
    """Encodes a benchmark's prompts."""
    given = sampling.template
    template = (
        make_template(given)
        if given is not None
        else benchmark.template or make_template(DEFAULT_TEMPLATE)
    )
    _check_marks(template, tokenizer)
    samples = sampling.samples
    budget = sampling.max_response_tokens or benchmark.max_response_tokens
    asked = Asked(
        benchmark=benchmark,
        prompts=template.encode_batch(benchmark.problems, tokenizer),
        template=template,
        num_greedy=0 if not sampling.greedy else 2 if sampling.repeat_greedy else 1,
        num_sampled=benchmark.num_samples if samples is None else samples,
        max_response_tokens=budget or DEFAULT_BUDGET,
        context=context,
        verifier=benchmark.verifier or verifier,
    )
    bos = tokenizer.bos_token_id
    assert (
        bos is None
        or bos == tokenizer.eos_token_id
        or all(list(ids[:2]).count(bos) < 2 for ids in asked.prompts)
    ), "a prompt begins with two BOS tokens"
    return asked


def _check_marks(template: PromptTemplate, tokenizer: Any) -> None:
    """A text that is put into a chat template must not be a chat already."""
    if not template.chat:
        return
    marks = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    texts = f"{template.template}\0{template.system or ''}"
    if found := [mark for mark in marks if mark in texts]:
        raise ValueError(
            f"`sampling.template` ({template.template!r:.100}) must hold no marks of "
            f"a chat ({found[0]}) with `chat`, because the tokenizer's chat template "
            "writes them, and they would stand twice. Set chat to false, or leave them "
            "out."
        )


def _check_context(asked: Asked, plan: Plan) -> None:
    name, wanted = asked.benchmark.name, asked.max_response_tokens
    longest = max(map(len, asked.prompts))
    budgets = [asked.budget(i) for i in range(len(asked.prompts))]
    num_short = sum(budget < wanted for budget in budgets)
    if not num_short:
        return
    if not plan.sampling.shorten_budget or min(budgets) < 1:
        assert asked.context is not None, "nothing else shortens budgets"
        raise ValueError(
            f"`sampling.max_response_tokens` ({wanted}) and the longest prompt of "
            f"{name} ({longest} tokens) must fit the model's context "
            f"({asked.context}), because it has no later positions, and a prompt is "
            f"never cut. Set it to {max(1, asked.context - longest)} or less, or set "
            "sampling.shorten_budget=true for these problems alone."
        )
    plan.warnings.append(
        f"{name}: {num_short} prompts leave less than {wanted} tokens; their budgets "
        f"are shortened to {min(budgets)} or more"
    )


def _check_golds(asked: Asked, plan: Plan) -> None:
    """Compares every gold answer with itself; those that fail stay in the figures."""
    if isinstance(asked.verifier, ProblemVerifier):
        # It grades by the problem; to some there is no one gold answer.
        return
    known = [p for p in asked.benchmark.problems if p.answer is not None]
    golds = [str(p.answer) for p in known]
    unreadable = (
        asked.verifier.check_golds(golds)
        if isinstance(asked.verifier, MathVerifier)
        else {}
    )
    verdicts = asked.verifier.verify(golds, [rf"\boxed{{{gold}}}" for gold in golds])
    odd = []
    for problem, gold, verdict in zip(known, golds, verdicts, strict=True):
        if gold in unreadable:
            why = "cannot be read: right only where it is repeated sign by sign"
        elif verdict.outcome != "correct":
            why = f"is not taken for itself ({verdict.outcome})"
        else:
            continue
        odd.append({"problem_id": problem.problem_id, "gold": gold, "why": why})
    name = asked.benchmark.name
    plan.odd_golds[name] = odd
    if odd:
        shown = ", ".join(f"{one['problem_id']} ({one['gold']:.40})" for one in odd[:5])
        plan.warnings.append(
            f"{name}: {len(odd)} of {len(golds)} gold answers cannot be read or are "
            f"not taken for themselves, such as {shown}; their problems count all the "
            "same"
        )
    num_unknown = len(asked.benchmark.problems) - len(known)
    if num_unknown:
        plan.warnings.append(
            f"{name}: {num_unknown} problems have no gold answer and are left out of "
            "all figures"
        )


def _check_overlap(asked: Asked, plan: Plan) -> None:
    if num := asked.benchmark.num_trained:
        plan.warnings.append(
            f"{asked.benchmark.name}: {num} of {len(asked.prompts)} problems are "
            "training prompts of the policy"
        )


def _check_judge(judge: JudgeSettings, weights: str, plan: Plan) -> dict[str, str]:
    """Returns the hash of the judge's weights; warns where it is not independent."""
    if judge.model is None:
        for asked in plan.asked:
            if asked.benchmark.step_checker is None:
                raise ValueError(
                    f"`judge.kind` (checker) must be one that {asked.benchmark.name} "
                    "has, and it has no exact checker of steps. Set --judge prm:FOLDER "
                    "or lm:FOLDER, or leave it out."
                )
        return {}
    found = weights_sha256(local_folder(judge.model, "judge.model"))
    trained_by = {n for asked in plan.asked for n in asked.benchmark.training_prms}
    if any(_is_same_model(name, judge.model, found) for name in trained_by):
        plan.warnings.append(
            f"the judge ({judge.model}) gave the policy's process rewards in training: "
            "what it likes by mistake the policy has learnt"
        )
    if found == weights:
        plan.warnings.append(f"the judge ({judge.model}) is the policy itself")
    return {"judge": found}


def _is_same_model(name: str, judge: str, judge_sha256: str) -> bool:
    if name == judge:
        return True
    folder = Path(resolve_model(name))
    return folder.is_dir() and weights_sha256(folder) == judge_sha256
