"""Every tuned example trains an iteration, with small stand-ins for what is large.

Only `--set` options differ from the file: models, prompts, places and sizes.
"""

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from pure_rllib.arithmetic.task import TASK_Z
from pure_rllib.arithmetic.tokenizer import build_tokenizer
from pure_rllib.cli.experiment import EXAMPLES, Experiment, load_experiment
from pure_rllib.cli.settings import search_spaces
from pure_rllib.models.loading import policy_config, random_model
from pure_rllib.testing import tiny_model_config
from tests.integration.conftest import built

MATH = "pure_rllib/Math-v0"
# What an environment is given of the models and prompts made here.
OF_MODELS: dict[str, tuple[str, ...]] = {
    MATH: ("problems", "tokenizer", ".prm", ".model"),
    "pure_rllib/Labels-v0": ("tokenizer", ".model"),
    "pure_rllib/ReasoningGym-v0": ("tokenizer", ".model"),
    "pure_rllib/WordProblems-v0": ("tokenizer", ".model"),
}
PAPER = "pure_prm_vr_qwen2_5_math_7b"


def tiny(vocab_size: int) -> dict[str, Any]:
    # On a CPU, vLLM wants attention heads of 32 or more.
    return tiny_model_config(
        vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        initializer_range=0.02,
    )


SMALL = ["env_runners.num_prompts=2", "stop.training_iteration=1"]
# As many tokens as the largest task has.
ARITHMETIC = json.dumps(tiny(112))
EMBEDDED = [
    *SMALL,
    f"rl_module.model_config.model={ARITHMETIC}",
    "environment.env_config.max_response_tokens=16",
]
# The neural PRM takes minutes to make; the exact scorer judges the same steps.
EXACT = [*EMBEDDED, "environment.env_config.process_rewards=exact"]
REAL = [*SMALL, "environment.env_config.max_response_tokens=16"]
# They sample in this process: it imports vLLM once for all of them.
ON_A_CPU = [
    *REAL,
    "env_runners.num_env_runners=0",
    "env_runners.num_gpus_per_env_runner=0",
    "env_runners.generator_kwargs="
    "{enforce_eager: true, kv_cache_memory_bytes: 100000000}",
    "learners.num_learners=1",
    "learners.num_gpus_per_learner=0",
]
# The one above has shown vLLM with the same policy and prompts.
SAMPLED_BY_TRANSFORMERS = [
    *ON_A_CPU,
    "env_runners.generator=transformers",
    "env_runners.generator_kwargs={}",
]
# tests/integration/test_vllm_training.py has vLLM beside a learner.
ON_ONE = [
    *REAL,
    "environment.env_config.eval_problems=null",
    "evaluation.evaluation_interval=null",
    "learners.num_gpus_per_learner=0",
    "env_runners.generator=transformers",
    "env_runners.colocate=false",
]
# Other tokenizers cut its prompts into more tokens.
REASONING_GYM = [
    *REAL,
    "environment.env_config.max_prompt_tokens=256",
    "environment.env_config.size=20",
    "environment.env_config.eval_size=4",
]
# The others of these differ in their tasks alone.
NUM_ARMS = {"reasoning_gym_sweep": 2}
STAND_INS = {
    "guess_number": SMALL,
    "guess_number_study": SMALL,
    "calculator": [*SMALL, f"rl_module.model_config.model={json.dumps(tiny(22))}"],
    "arithmetic": EXACT,
    "arithmetic_grpo": EMBEDDED,
    "arithmetic_rlhf": EMBEDDED,
    "arithmetic_rloo": EMBEDDED,
    "arithmetic_rover": [*EMBEDDED, "training.minibatch_size=8"],
    "arithmetic_riskpo": [*EMBEDDED, "training.bundle_size=2"],
    "arithmetic_prm": EXACT,
    "arithmetic_prm_rounds": [*EMBEDDED, f"environment.env_config.prm={ARITHMETIC}"],
    "arithmetic_credit_study": EMBEDDED,
    "arithmetic_sparse_study": EMBEDDED,
    "arithmetic_sweep": EMBEDDED,
    # Other tokenizers cut its prompts into more tokens.
    "labels_arithmetic": [*REAL, "environment.env_config.max_prompt_tokens=128"],
    "labels_smollm2": [*REAL, "environment.env_config.prompt_template=plain"],
    "math_prompts": REAL,
    "math_0_5b_one_gpu": ON_ONE,
    "math_1_5b_one_gpu": ON_ONE,
    "math_3b_one_gpu": ON_ONE,
    "math_7b_lora_one_gpu": ON_ONE,
    "reasoning_gym": REASONING_GYM,
    "reasoning_gym_sweep": REASONING_GYM,
    "smollm2_sums": REAL,
    "methods_grpo": EMBEDDED,
    "methods_pure": EMBEDDED,
    "methods_riskpo": [*EMBEDDED, "training.bundle_size=2"],
    "methods_rloo": EMBEDDED,
    "methods_rover": [*EMBEDDED, "training.minibatch_size=8"],
    PAPER: ON_A_CPU,
    f"{PAPER}_two_nodes": SAMPLED_BY_TRANSFORMERS,
    f"{PAPER}_verl": SAMPLED_BY_TRANSFORMERS,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name prompts, tokenizer, policy and PRM, made here."""
    folder = tmp_path_factory.mktemp("models")
    problems = [{"problem": f"{i}+2=?", "answer": str(i + 2)} for i in range(8)]
    (folder / "problems.json").write_text(json.dumps(problems))
    shared = Path(__file__).resolve().parents[2].parent / "shared/data/tokenizers"
    policy, prm = folder / "policy", folder / "prm"
    if (shared / "qwen2.5").is_dir():
        shutil.copytree(shared / "qwen2.5", policy)
        size = 151936
    else:
        build_tokenizer(TASK_Z).save_pretrained(policy)
        size = len(build_tokenizer(TASK_Z))
    shutil.copytree(policy, prm)
    random_model(AutoModelForCausalLM, policy_config(tiny(size)), 0).save_pretrained(
        policy
    )
    labelled = policy_config({**tiny(size), "num_labels": 2})
    random_model(AutoModelForTokenClassification, labelled, 0).save_pretrained(prm)
    rater, size = folder / "reward_model", len(build_tokenizer(TASK_Z))
    build_tokenizer(TASK_Z).save_pretrained(rater)
    rating = policy_config({**tiny(size), "num_labels": 1, "pad_token_id": 0})
    random_model(AutoModelForSequenceClassification, rating, 0).save_pretrained(rater)
    given = {
        "problems": folder / "problems.json",
        "tokenizer": policy,
        "prm": prm,
        "reward_model": rater,
    }
    return [
        *(f"environment.env_config.{key}={path}" for key, path in given.items()),
        f"rl_module.model_config.model={policy}",
    ]


def without_search(experiment: Experiment) -> Experiment:
    """The first point of each search space."""
    return experiment.with_overrides(
        [
            f"{key}={json.dumps(space['grid_search'][0])}"
            for key, space in search_spaces(experiment.config).items()
        ]
    )


def test_every_example_has_a_stand_in() -> None:
    trained = {path.stem for path in EXAMPLES.glob("*.yaml")}
    # The others are evaluated.
    assert {n for n in trained if not n.startswith("eval_")} == set(STAND_INS)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAND_INS)
def test_example_trains_an_iteration(
    name: str, ray_cluster: None, models: list[str]
) -> None:
    experiment = load_experiment(name)
    runners, learners = (
        experiment.config.get(section, {}) for section in ("env_runners", "learners")
    )
    for engine, is_used in (
        ("vllm", runners.get("generator") == "vllm"),
        ("deepspeed", learners.get("deepspeed") is not None),
    ):
        if is_used and find_spec(engine) is None:
            pytest.skip(f"{engine} is not installed (make engines): {name} was not run")
    if name.startswith("reasoning_gym"):
        pytest.importorskip(
            "reasoning_gym", reason=f"reasoning-gym is absent: {name} was not run"
        )
    environment = experiment.config["environment"]
    wanted = OF_MODELS.get(environment["env"], ())
    if "reward_model" in environment.get("env_config", {}):
        wanted = (*wanted, "reward_model")
    given = [option for option in models if option.split("=")[0].endswith(wanted)]
    experiment = without_search(experiment.with_overrides([*given, *STAND_INS[name]]))
    arms: list[str | None] = [*experiment.arms] or [None]
    for arm in arms[: NUM_ARMS.get(name)]:
        with built(experiment.arm_config(arm)) as algo:
            result = algo.train()
        assert result["training_iteration"] == 1
        assert math.isfinite(result["loss"]["total"])
        assert result["env_runners"]["num_episodes"] == 2 * algo.config.group_size
