"""What an evaluation depends on, as plain data, to be shown and to be compared."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pure_rllib import __version__

if TYPE_CHECKING:
    from pure_rllib.evaluation.plan import Asked, Plan

_HASH_BYTES = 2**24


def weights_sha256(folder: str | Path) -> str:
    """Hashes a model's safetensors, by name and content."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        found.update(path.name.encode())
        with path.open("rb") as file:
            while data := file.read(_HASH_BYTES):
                found.update(data)
    return found.hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(sorted(tokenizer.get_vocab()))
    return _sha256([text, tokenizer.chat_template])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def record_of(plan: "Plan", hashes: Mapping[str, str]) -> dict[str, Any]:
    """Every setting that can change a figure, and hashes of all that is read."""
    policy = plan.policy
    names = ("model", "generator", "dtype", "trust_remote_code", "generator_kwargs")
    return {
        "pure_rllib": __version__,
        # How many engines there are, and on what, changes no response.
        "policy": {name: getattr(policy, name) for name in names},
        "sampling": asdict(plan.sampling),
        "judge": None if plan.judge is None else asdict(plan.judge),
        "hashes": {**hashes, "tokenizer": _tokenizer_sha256(plan.tokenizer)},
        "eos_token_ids": plan.eos_token_ids,
        "benchmarks": {a.benchmark.name: _of_benchmark(a, plan) for a in plan.asked},
    }


def _of_benchmark(asked: "Asked", plan: "Plan") -> dict[str, Any]:
    first = list(asked.prompts[0])
    return {
        "source": asked.benchmark.source,
        "notes": list(asked.benchmark.notes),
        "gold_fixes": dict(asked.benchmark.gold_fixes),
        "num_problems": len(asked.prompts),
        "num_training_prompts": asked.benchmark.num_trained,
        "data_sha256": asked.benchmark.data_sha256,
        "num_samples": asked.num_sampled,
        "max_response_tokens": asked.max_response_tokens,
        "template": {**asdict(asked.template)},
        "prompts_sha256": _sha256([list(ids) for ids in asked.prompts]),
        "first_prompt": {"ids": first, "text": plan.tokenizer.decode(first)},
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists what differs between the records of two plans: `key: old -> new`.

    Where files lie is left out: their hashes say what is in them.
    """
    flat_old, flat_new = _flat(old), _flat(new)
    return [
        f"{key}: {flat_old.get(key, 'not set')!r:.200} -> "
        f"{flat_new.get(key, 'not set')!r:.200}"
        for key in {**flat_old, **flat_new}
        if flat_old.get(key, "not set") != flat_new.get(key, "not set")
        and not key.endswith((".source", ".model"))
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
