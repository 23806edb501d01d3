"""Memory per learner: replicas against DeepSpeed ZeRO 1, 2 and 3.

Two learners make two updates of a bfloat16 policy with 100 million parameters, on a few
tokens, so that activations hardly count. The table has, of the learner with the most,
the bytes of all tensors that are alive between updates (parameters, float32 master
weights, AdamW's moments) and when the backward passes are done (gradients too), and the
peak of its resident memory in the second update, Python and libraries included. Needs
DeepSpeed, and memory for two replicas (about 6 GiB).

    python benchmarks/zero_memory.py [--dtype float32] [--stages 0 3]
"""

import argparse
import gc
from typing import Any

import numpy as np
import ray
import torch
from updates import forget_peak, make_group, make_learners, peak_bytes, update

from pure_rllib.algorithms import PUREConfig
from pure_rllib.distributed.calls import on_learners
from pure_rllib.models.memory_plan import MemorySettings, ModelSize, plan_memory
from pure_rllib.reporting.tables import format_table

POLICY = {
    "model_type": "qwen2",
    "vocab_size": 8000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
MIB = 2**20


def held_bytes() -> int:
    """Bytes of all tensors that are alive, storage shared between them once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def watch(learner: Any) -> None:
    """Starts to record: the resident peak, and what is held before a step."""
    apply_gradients = learner._apply_gradients

    def apply_and_record(*args: Any) -> float:
        learner.held_at_step = held_bytes()
        return float(apply_gradients(*args))

    learner._apply_gradients = apply_and_record
    forget_peak()


def measured(learner: Any) -> dict[str, int]:
    return {
        "held": held_bytes(),
        "at_step": learner.held_at_step,
        "peak": peak_bytes(),
    }


def measure(stage: int, num_learners: int, dtype: str) -> list[dict[str, int]]:
    config = (
        PUREConfig()
        .environment("pure_rllib/Arithmetic-v0")
        .env_runners(group_size=2, max_response_tokens=8)
        .rl_module(model_config={"model": POLICY, "dtype": dtype})
        .training(lr=1.0e-6, micro_batch_tokens=64)
        .learners(
            num_learners=num_learners,
            num_cpus_per_learner=0.5,
            deepspeed={"stage": stage} if stage else None,
        )
    )
    learners = make_learners(config, POLICY["vocab_size"])
    rng = np.random.default_rng(0)
    shares = [
        {i: make_group(rng, i, POLICY["vocab_size"], 8, [8, 8])}
        for i in range(num_learners)
    ]
    try:
        update(learners, shares)  # AdamW makes its moments
        on_learners(learners, watch)
        update(learners, shares, 1)
        return on_learners(learners, measured)
    finally:
        learners.shutdown()


def planned(stage: int, num_learners: int, dtype: str) -> int:
    """What the memory plan says of a learner before the step, in bytes."""
    settings = MemorySettings(
        ModelSize.of(POLICY), dtype=dtype, zero_stage=stage, num_learners=num_learners
    )
    learn = plan_memory(settings)["learn"]
    return int(learn.weights + learn.optimizer + learn.gradients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learners", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    arguments = parser.parse_args()
    ray.init(
        num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False
    )
    rows = []
    for stage in arguments.stages:
        found = measure(stage, arguments.learners, arguments.dtype)
        most = [max(one[key] for one in found) // MIB for key in found[0]]
        plan = planned(stage, arguments.learners, arguments.dtype) // MIB
        rows.append([f"ZeRO {stage}" if stage else "replicas", *most, plan])
    titles = ["MiB per learner", "between updates", "before the step", "peak RSS"]
    titles.append("planned before the step")
    print(format_table(titles, rows, markdown=True))
    ray.shutdown()


if __name__ == "__main__":
    main()
