"""The check that weights arrived, on real models and on numbers chosen by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.models.export import untied_tensors
from pure_rllib.models.fingerprints import fingerprint
from pure_rllib.models.logprobs import sequence_logps
from pure_rllib.models.lora import (
    adapter_tensors,
    add_lora,
    lora_merged,
    merged_tensors,
)
from pure_rllib.weight_sync.check import (
    Probe,
    StaleWeightsError,
    SyncCheck,
)
from pure_rllib.weight_sync.object_store import LiveWeights

PROBE_IDS = ((3, 4, 5, 6, 7), (9, 2, 8))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_model(tied: bool, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config).eval()


def probe_of(model: Qwen2ForCausalLM) -> Probe:
    with torch.no_grad():
        logps = tuple(sequence_logps(model, ids) for ids in PROBE_IDS)
    return Probe(PROBE_IDS, logps)


def generator_of(model: Qwen2ForCausalLM) -> TransformersGenerator:
    return TransformersGenerator(model, pad_token_id=0, eos_token_ids=[1])


def probe(*logps: float) -> Probe:
    return Probe(((0,) * (len(logps) + 1),), (np.array(logps, np.float32),))


def given(*logps: float) -> list[np.ndarray]:
    return [np.array(logps, np.float32)]


@pytest.mark.parametrize("tied", [True, False])
def test_a_generator_with_all_tensors_passes(tied: bool) -> None:
    learner, generator = make_model(tied, 0), generator_of(make_model(tied, 1))
    generator.load_weights(LiveWeights.of(learner, version=7))
    logps = generator.logps(PROBE_IDS)
    assert 0.0 <= SyncCheck(1e-4).check(7, probe_of(learner), logps) < 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-3), ("bfloat16", 1.0)])
@pytest.mark.parametrize("tied", [True, False])
def test_each_tensor_that_is_stale_after_a_large_update_is_caught(
    tied: bool, dtype: str, limit: float
) -> None:
    for stale, _ in untied_tensors(make_model(tied, seed=0)):
        learner, model = (make_model(tied, seed=0).to(DTYPES[dtype]) for _ in range(2))
        check = SyncCheck(limit)
        check.check(6, probe_of(learner), generator_of(model).logps(PROBE_IDS))
        parameter = learner.get_parameter(stale)
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
        with pytest.raises(StaleWeightsError, match="weights version 7"):
            check.check(7, probe_of(learner), generator_of(model).logps(PROBE_IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_each_tensor_that_is_stale_from_the_first_is_caught(tied: bool) -> None:
    learner = make_model(tied, seed=0)
    for stale, _ in untied_tensors(learner):
        model = make_model(tied, seed=0)
        parameter = model.get_parameter(stale)
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
        logps = generator_of(model).logps(PROBE_IDS)
        with pytest.raises(StaleWeightsError, match="weights version 7"):
            SyncCheck(1e-3).check(7, probe_of(learner), logps)


class Updates:
    """A learner that makes small updates of its float32 masters, and a generator."""

    def __init__(self, dtype: str, size: float):
        self.masters = make_model(True, 0)
        self.learner = make_model(True, 0).to(DTYPES[dtype])
        self.generator = generator_of(make_model(True, 0).to(DTYPES[dtype]))
        self._size = size
        torch.manual_seed(1)

    def make(self, *, stale: Callable[[str], bool]) -> None:
        """Makes one; tensors with a stale name do not arrive at the generator."""
        for name, master in self.masters.named_parameters():
            with torch.no_grad():
                master.add_(self._size * torch.randn_like(master).sign())
                self.learner.get_parameter(name).copy_(master)
                if not stale(name):
                    self.generator.model.get_parameter(name).copy_(master)

    def logps(self) -> tuple[Probe, list[np.ndarray]]:
        return probe_of(self.learner), self.generator.logps(PROBE_IDS)


@pytest.mark.parametrize(
    ("dtype", "size", "limit"), [("float32", 1e-5, 0.01), ("bfloat16", 1e-3, 1.0)]
)
@pytest.mark.parametrize(
    "stale", ["all", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"]
)
def test_small_updates_that_do_not_arrive_are_caught(
    stale: str, dtype: str, size: float, limit: float
) -> None:
    """Far below the limit."""
    updates, check = Updates(dtype, size), SyncCheck(limit)
    with pytest.raises(StaleWeightsError, match="must move with the learner"):
        for version in range(20):
            check.check(version, *updates.logps())
            updates.make(stale=lambda name: stale in ("all", name))
    assert version < 15


@pytest.mark.parametrize(
    ("dtype", "size", "limit"), [("float32", 1e-7, 0.01), ("bfloat16", 1e-4, 1.0)]
)
def test_small_updates_that_arrive_pass(dtype: str, size: float, limit: float) -> None:
    updates, check = Updates(dtype, size), SyncCheck(limit)
    for version in range(40):
        check.check(version, *updates.logps())
        updates.make(stale=lambda name: False)


@pytest.mark.parametrize(("tied", "size"), [(True, 1e-6), (False, 1e-5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_tensor_that_is_stale_after_one_small_update_is_named(
    tied: bool, dtype: str, size: float
) -> None:
    """Unless the update is lost in the dtype: then nothing is stale."""
    generator = generator_of(make_model(tied, 0).to(DTYPES[dtype]))
    learner = make_model(tied, 0).to(DTYPES[dtype])

    def look(check: SyncCheck, versions: range) -> None:
        for version in versions:
            sent = {n: fingerprint(t, version) for n, t in untied_tensors(learner)}
            check.check_tensors(version, sent, generator.held_tensors(version))

    names = []
    for stale, exact in untied_tensors(make_model(tied, 0)):
        check, tensor = SyncCheck(limit=1.0), learner.get_parameter(stale).data
        old = tensor.clone()
        look(check, range(16))
        tensor.copy_(exact + size * torch.randn_like(exact).sign())
        if torch.equal(tensor, old):
            look(check, range(16, 32))
        else:
            with pytest.raises(StaleWeightsError, match=f"must hold {stale} as the"):
                look(check, range(16, 32))
            names.append(stale)
        tensor.copy_(old)
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"} <= {
        *names
    }


def test_a_tensor_that_is_held_in_another_form_is_not_compared() -> None:
    check = SyncCheck(limit=1.0)
    check.check_tensors(0, {"a": 1, "b": 2}, [(("a",), 5), (("a", "b"), 3)])
    check.check_tensors(1, {"a": 7, "b": 2}, [(("a",), 5), (("a", "b"), 9)])
    with pytest.raises(StaleWeightsError, match=r"must hold a \+ b as the learner"):
        check.check_tensors(2, {"a": 8, "b": 2}, [(("a",), 5), (("a", "b"), 9)])


def test_a_tensor_that_is_no_longer_sent_is_stale() -> None:
    check, held = SyncCheck(limit=1.0), [(("a",), 1), (("b",), 2)]
    check.check_tensors(0, {"a": 1, "b": 2}, held)
    with pytest.raises(StaleWeightsError, match="must hold a and 1 others as the"):
        check.check_tensors(1, {}, held)


@pytest.mark.parametrize("stale", ["none", "model.layers.0.self_attn.v_proj.weight"])
def test_adapters_too_small_for_bfloat16_pass_and_stale_tensors_do_not(
    stale: str,
) -> None:
    """What rounding swallows of an adapter is missing on both sides."""
    learner = make_model(True, 0).to(torch.bfloat16)
    generator = generator_of(make_model(True, 0).to(torch.bfloat16))
    add_lora(learner, {"r": 2, "target_modules": ["q_proj", "v_proj"]}, seed=0)
    check = SyncCheck(limit=1.0)
    torch.manual_seed(1)

    def follow() -> None:
        for version in range(40):
            for name, tensor in merged_tensors(learner):
                if name != stale:
                    generator.model.get_parameter(name).data.copy_(tensor)
            with torch.no_grad(), lora_merged(learner):
                logps = tuple(sequence_logps(learner, ids) for ids in PROBE_IDS)
            check.check(version, Probe(PROBE_IDS, logps), generator.logps(PROBE_IDS))
            for parameter in adapter_tensors(learner).values():
                with torch.no_grad():
                    parameter.add_(2e-3 * torch.randn_like(parameter).sign())

    if stale == "none":
        return follow()
    with pytest.raises(StaleWeightsError, match="must move with the learner"):
        follow()


@pytest.mark.parametrize("movement", [0.001, 0.01, 0.1, 1.0])
def test_rounding_that_differs_from_version_to_version_passes(movement: float) -> None:
    """As large as in bfloat16, beside movements of any size."""
    rng, check = np.random.default_rng(0), SyncCheck(limit=1.0)
    direction, start = rng.standard_normal(200), rng.uniform(-9.0, -1.0, 200)
    for version in range(100):
        learner = start + movement * version / 100 * direction
        generator = learner + 0.02 * rng.standard_normal(200)
        check.check(version, probe(*learner), given(*generator))


def test_a_constant_difference_of_two_kernels_passes() -> None:
    check = SyncCheck(limit=1.0)
    # The generator's numbers are off by +0.3 and -0.2; the learner moves by 4 nats.
    for step in range(5):
        change = float(step)
        gap = check.check(
            step,
            probe(-9.0 + change, -2.0),
            given(-9.0 + change + 0.3, -2.0 - 0.2),
        )
        assert gap == pytest.approx(0.3, abs=1e-6)


def test_numbers_that_stay_the_same_are_caught_at_the_third_update() -> None:
    check = SyncCheck(limit=1.0)
    # Moves by less than ten times the 0.1 that they disagree by.
    check.check(0, probe(-2.0), given(-2.1))
    check.check(1, probe(-2.01), given(-2.1))
    check.check(2, probe(-2.02), given(-2.1))
    with pytest.raises(StaleWeightsError, match="did not in 3 updates"):
        check.check(3, probe(-2.03), given(-2.1))


def test_a_learner_that_does_not_learn_is_no_fault() -> None:
    check = SyncCheck(limit=1.0)
    for version in range(10):
        check.check(version, probe(-2.0), given(-2.1))


def test_a_broken_generator_is_caught() -> None:
    learner = make_model(True, seed=0)
    broken = [np.full(len(ids) - 1, np.nan, np.float32) for ids in PROBE_IDS]
    with pytest.raises(StaleWeightsError, match=r"\(nan\)"):
        SyncCheck(1.0).check(1, probe_of(learner), broken)


def test_the_largest_difference_is_reported() -> None:
    two = Probe(((1, 2, 3), (4, 5)), (np.array([-1.0, -2.0]), np.array([-3.0])))
    logps = [np.array([-1.5, -2.0]), np.array([-2.25])]
    assert SyncCheck(1.0).check(1, two, logps) == 0.75
