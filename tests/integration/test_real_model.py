"""Two iterations of a real model, SmolLM2-135M-Instruct in bfloat16, on each engine.

Its folder is not part of the repository: `PURE_SMOLLM2_DIR` names it.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pure_rllib.algorithms import PUREConfig
from tests.integration.conftest import NEEDS_VLLM, built, flat

FOLDER = os.environ.get("PURE_SMOLLM2_DIR")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        FOLDER is None,
        reason="PURE_SMOLLM2_DIR names no folder of SmolLM2-135M-Instruct: not run",
    ),
    pytest.mark.usefixtures("ray_cluster"),
]
NEEDS_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: not run (make engines)",
)
VLLM = {"generator": "vllm", "generator_kwargs": {"enforce_eager": True}}
LORA = {"r": 16, "target_modules": "all-linear"}
ZERO_2 = {
    "num_learners": 2,
    "num_cpus_per_learner": 0.5,
    "deepspeed": {"stage": 2},
}


def score(prompt: str, steps: list[str]) -> list[float]:
    """Of two steps of a kind the longer is better, so that there is a gradient."""
    return [min(len(step), 80) / 40 - 1 for step in steps]


def real_config(tmp_path: Path) -> PUREConfig:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        '{"problem": "Name three fruits. Write a paragraph of a few words on each, '
        'with a blank line between them.", "answer": "0"}\n'
        '{"problem": "Tom has 3 marbles and buys 4. How many has he?", "answer": "7"}\n'
    )
    settings = {
        "tokenizer": FOLDER,
        "problems": str(problems),
        "step_scorer": score,
        "max_response_tokens": 48,
    }
    config = PUREConfig().environment("pure_rllib/Math-v0", env_config=settings)
    config.env_runners(num_prompts=2, group_size=4)
    return config.debugging(seed=0)


@pytest.mark.parametrize(
    ("env_runners", "learners", "lora", "lr"),
    [
        pytest.param({}, {}, None, 1e-5, id="transformers"),
        pytest.param(VLLM, {}, None, 1e-5, id="vllm", marks=NEEDS_VLLM),
        pytest.param({}, {}, LORA, 2e-4, id="lora"),
        pytest.param({}, ZERO_2, None, 1e-5, id="zero 2", marks=NEEDS_DEEPSPEED),
    ],
)
def test_a_real_model_is_trained(
    tmp_path: Path,
    env_runners: dict[str, Any],
    learners: dict[str, Any],
    lora: dict[str, Any] | None,
    lr: float,
) -> None:
    config = real_config(tmp_path).env_runners(**env_runners).training(lr=lr)
    model_config = {"model": FOLDER, "dtype": "bfloat16"}
    config.rl_module(model_config=model_config | ({"lora": lora} if lora else {}))
    config.learners(**learners)
    num_cut = 0
    with built(config) as algo:
        for _ in range(2):
            result = flat(algo.train())
            assert np.isfinite(result["loss/policy"])
            assert 0 < result["gradient_norm"] < np.inf
            assert result["generator_learner_logp_gap"] < 1.0
            for record in (one for group in algo.rollouts() for one in group):
                before, blank, after = record.response_text.partition("\n\n")
                if before.strip() and blank and after.strip():
                    num_cut += 1
                    assert len(record.step_spans) >= 2, record.response_text
    assert num_cut > 0, "no response had a blank line"
