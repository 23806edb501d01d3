"""Rollouts to look at: what the policy wrote, and what each step and token earned.

The page is one HTML file without anything from outside. What a policy writes may be
hostile, so its text never becomes markup: it travels as JSON without "<", ">" and "&",
the page's script only ever sets `textContent`, and a content security policy lets no
other script run and nothing be fetched.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pure_rllib.reporting.records import Numbers, ResponseRecord
from pure_rllib.reporting.response_metrics import response_metrics

if TYPE_CHECKING:
    import wandb

Groups = Sequence[Sequence[ResponseRecord]]

TEMPLATE = Path(__file__).with_name("rollouts.html.jinja")
TABLE_COLUMNS = (
    "iteration",
    "prompt",
    "response",
    "answer",
    "extracted",
    "verdict",
    "step rewards",
    "min reward",
    "tokens",
)
"""Of the table for Weights & Biases."""
REPLACEMENT = "\ufffd"  # how a token that is part of a character decodes


def write_rollouts_page(
    groups: Groups | Mapping[int, Groups],
    path: str | Path,
    title: str,
    meta: Mapping[str, Any] | None = None,
    *,
    max_groups: int = 48,
    max_responses: int | None = None,
    max_tokens: int = 400_000,
) -> Path:
    """Writes groups of responses as one self-contained HTML file.

    Args:
        groups: groups of responses, or iteration -> groups, which gives the page an
            iteration selector.
        path: HTML file to write; its folder is made.
        title: heading of the page.
        meta: facts about the run, shown under the heading.
        max_groups: groups kept per iteration, the first ones.
        max_responses: responses kept per group, the first ones; None: all.
        max_tokens: response tokens kept in all (a token takes about 20 bytes); groups
            are taken from all iterations in turn until it is used up, at least one
            each. The page says how many of how many groups it shows.

    Returns:
        The path.

    Raises:
        ValueError: there is no group, or a group without a response.
    """
    import jinja2

    by_iteration = groups if isinstance(groups, Mapping) else {None: groups}
    if not any(by_iteration.values()):
        raise ValueError("`groups` (empty) must have a group: there is nothing to show")
    if any(not group for g in by_iteration.values() for group in g):
        raise ValueError("`groups` must not have empty groups; leave them out")
    kept = {
        iteration: [group[:max_responses] for group in all_groups]
        for iteration, all_groups in by_iteration.items()
    }
    counts = _fit(kept, max_groups, max_tokens)
    pages = [
        {
            "iteration": iteration,
            "summary": _summary(all_groups),
            "groups": [
                {
                    "id": group[0].group_id,
                    "prompt": group[0].prompt,
                    "answer": group[0].answer,
                    "size": len(group),
                    "verified": sum(r.correct is not None for r in group),
                    "correct": sum(r.correct is True for r in group),
                    "responses": [_response_data(record) for record in shown],
                }
                for group, shown in zip(
                    all_groups[: counts[iteration]], kept[iteration], strict=False
                )
            ],
        }
        for iteration, all_groups in by_iteration.items()
    ]
    records = [r for found in by_iteration.values() for group in found for r in group]
    # What no response has gets no place on the page: there was nobody to give it.
    has = {
        "rewards": any(r.step_rewards is not None for r in records),
        "reasoning": any("reasoning" in r.metadata for r in records),
        "verdicts": any(r.correct is not None for r in records),
        "advantages": any(r.advantages is not None for r in records),
    }
    data = _inert_json({"iterations": pages, "has": has})
    template = jinja2.Template(
        TEMPLATE.read_text(encoding="utf-8"), autoescape=True, trim_blocks=True
    )
    html = template.render(
        title=title,
        meta={key: str(value) for key, value in (meta or {}).items()},
        data=data,
        nonce=hashlib.sha256(data.encode()).hexdigest()[:32],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _fit(
    by_iteration: Mapping[Any, Groups], max_groups: int, max_tokens: int
) -> dict[Any, int]:
    """How many groups of each iteration are shown."""
    counts = dict.fromkeys(by_iteration, 0)
    used = 0
    for index in range(max_groups):
        for iteration, groups in by_iteration.items():
            # Counts stay those of a prefix: an iteration left out once stays out.
            if index >= len(groups) or counts[iteration] < index:
                continue
            size = sum(r.num_tokens for r in groups[index])
            if index == 0 or used + size <= max_tokens:
                counts[iteration] += 1
                used += size
    return counts


def _summary(groups: Groups) -> dict[str, Any]:
    """What the header says of an iteration: of all its groups, shown or not."""
    records = [record for group in groups for record in group]
    metrics = response_metrics(records)
    verified = [r for r in records if r.correct is not None]
    return {
        "groups": len(groups),
        "responses": len(records),
        "verified": len(verified),
        "correct": sum(r.correct is True for r in verified),
        "processMin": _number(metrics["reward/process_min"]),
        "processMean": _number(metrics["reward/process_mean"]),
        "agreement": _number(metrics["prm/verifier_agreement"]),
        "tokens": _number(metrics["response/tokens"]),
        "steps": _number(metrics["response/steps"]),
        "truncated": _number(metrics["response/truncated_share"]),
    }


def _response_data(record: ResponseRecord) -> dict[str, Any]:
    spans = [(int(start), int(end)) for start, end in record.step_spans]
    tokens = record.response_tokens
    if tokens is None:
        raise ValueError(
            "`response_tokens` (None) must be given for the page, which shows each "
            "token. Fill it with the tokens' texts."
        )
    return {
        "tokens": list(tokens),
        "ids": [int(i) for i in record.token_ids],
        "texts": span_texts(record.response_text, tokens, spans),
        "said": [[int(before), text] for before, text in record.observations],
        "turns": record.num_turns,
        "spans": spans,
        "rewards": _numbers(record.step_rewards),
        "min": _number(record.min_reward),
        "total": _number(record.total_reward),
        "correct": record.correct,
        "outcome": record.outcome,
        "extracted": record.extracted_answer,
        "terminated": record.terminated,
        "repetition": _number(record.repetition),
        "reflection": record.reflection,
        "advantages": _numbers(record.advantages),
        "returns": _numbers(record.returns),
        "metadata": {key: str(value) for key, value in record.metadata.items()},
    }


def span_texts(
    text: str, tokens: Sequence[str], spans: Sequence[tuple[int, int]]
) -> list[str | None]:
    """Finds the text of the spans whose tokens do not decode one by one.

    A character of several tokens shows as replacement characters in each of them; the
    whole text has it, between the tokens around.

    Args:
        text: the decoded response.
        tokens: T strings, each token decoded on its own.
        spans: half-open token ranges.

    Returns:
        One text per span; None where joining the tokens is right (nearly always), or
        where the text cannot be told.
    """
    if not any(REPLACEMENT in token for token in tokens):
        return [None] * len(spans)
    starts = [0] * (len(tokens) + 1)  # position in the text where each token starts
    position, index = 0, 0
    while index < len(tokens):
        starts[index] = position
        if REPLACEMENT not in tokens[index]:
            if text.startswith(tokens[index], position):
                position += len(tokens[index])
            index += 1
            continue
        run = index
        while run < len(tokens) and REPLACEMENT in tokens[run]:
            run += 1
        found = text.find(tokens[run], position) if run < len(tokens) else len(text)
        position = max(found, position)
        starts[index + 1 : run] = [position] * (run - index - 1)
        index = run
    starts[-1] = position
    return [
        text[starts[a] : starts[b]]
        if any(REPLACEMENT in token for token in tokens[a:b])
        else None
        for a, b in spans
    ]


def rollout_table(
    records: Iterable[ResponseRecord], iteration: int, max_rows: int = 64
) -> "wandb.Table":
    """Makes a table with one row per response.

    Args:
        records: responses, in the order of the rows.
        iteration: stands in each row.
        max_rows: rows kept, the first ones.

    Returns:
        A table, to be logged with `run.log({"rollouts": table})`; without the columns
        of rewards where no response has any.
    """
    import wandb

    records = list(itertools.islice(records, max_rows))
    rows = [_table_row(record, iteration) for record in records]
    columns = list(TABLE_COLUMNS)
    if not any(record.step_rewards is not None for record in records):
        columns = [c for c in columns if c not in ("step rewards", "min reward")]
    data = [[row[column] for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def _table_row(record: ResponseRecord, iteration: int) -> dict[str, Any]:
    rewards = record.step_rewards
    return {
        "iteration": iteration,
        "prompt": record.prompt,
        "response": record.response_text,
        "answer": record.answer,
        "extracted": record.extracted_answer,
        "verdict": record.outcome,
        "step rewards": None
        if rewards is None
        else " ".join(f"{r:+.2f}" for r in rewards),
        "min reward": record.min_reward,
        "tokens": record.num_tokens,
    }


def _number(value: float | None) -> float | None:
    """Four digits; None for what JSON cannot say."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def _numbers(values: Numbers | None) -> list[float | None] | None:
    return None if values is None else [_number(float(v)) for v in values]


def _inert_json(data: Any) -> str:
    """JSON that cannot end, or change, the script element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
