"""One GPU: what an update takes there, and that an engine gives its memory back."""

import gc
import importlib.util
from functools import partial

import numpy as np
import pytest
import torch

from pure_rllib.learners.master_weights import MasterWeights
from pure_rllib.models.export import cut_into_shards, untied_tensors
from pure_rllib.models.loading import load_policy
from pure_rllib.models.logprobs import LOGP, response_logps, sequence_logps
from pure_rllib.models.memory_plan import MemorySettings, ModelSize, plan_memory
from pure_rllib.weight_sync.object_store import LiveWeights
from tests.unit.conftest import qwen2_5

pytestmark = pytest.mark.gpu
MIB = 2**20


def test_an_update_peaks_where_the_plan_says():
    config, rows, length = qwen2_5("0.5B"), 8, 1024
    policy = load_policy(config, dtype="bfloat16").to("cuda").train()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    masters = MasterWeights(policy)
    optimizer = torch.optim.AdamW(masters.tensors, lr=1e-6, fused=True)
    ids = torch.randint(0, 150_000, (rows, length), device="cuda")
    prompt_lens = torch.ones(rows, dtype=torch.long, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # AdamW makes its moments in the first step
        every = torch.ones_like(ids[:, 1:], dtype=torch.bool)
        logps = response_logps(policy, ids, prompt_lens, ids[:, 1:], every)[LOGP]
        logps.sum().backward()
        masters.step(optimizer)
        for tensor in masters.tensors:
            tensor.grad = None
    settings = MemorySettings(
        ModelSize.of(config), pass_tokens=rows * length, checkpointing=True
    )
    expected = plan_memory(settings)["learn"].tensors
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected, rel=0.1)


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: not run"
)
def test_an_engine_gives_its_memory_back_each_time():
    from pure_rllib.generation.vllm_generator import VLLMGenerator

    config = {**qwen2_5("0.5B"), "num_hidden_layers": 4}
    policy = load_policy(config, dtype="bfloat16").to("cuda")
    device = torch.device("cuda")
    read = partial(cut_into_shards, device=device)
    generator = VLLMGenerator(
        config,
        eos_token_ids=[0],
        prompt_and_response_len=256,
        dtype="bfloat16",
        colocate=True,
        num_sequences=64,
    )
    ids = [list(range(1, 65))]
    asleep, awake = [], []
    try:
        for version in range(50):
            with torch.no_grad():
                for tensor in policy.parameters():
                    tensor.add_(torch.randn_like(tensor), alpha=1e-3)
            weights = LiveWeights(version, lambda: read(untied_tensors(policy)))
            wake = generator.wake if version else generator.load_weights
            wake(weights)
            with torch.no_grad():
                expected = sequence_logps(policy, ids[0], device)
            gap = np.abs(generator.logps(ids)[0] - expected)
            assert gap.max() < 1.0 and gap.mean() < 0.1, version
            awake.append(free_bytes())
            generator.sleep()
            asleep.append(free_bytes())
    finally:
        generator.close()
    # The first cycles make workspaces that stay.
    for found in (asleep[3:], awake[3:]):
        assert max(found) - min(found) <= 64 * MIB
    assert asleep[-1] - awake[-1] > ModelSize.of(config).parameters * 2


def free_bytes() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
