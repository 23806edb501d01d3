"""vLLM as a generator, on real engines with tiny random policies."""

import copy
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pure_rllib.generation.base import Request, Response, SamplingParams
from pure_rllib.generation.engine_log import EngineError
from pure_rllib.generation.transformers_generator import TransformersGenerator
from pure_rllib.generation.vllm_generator import VLLMGenerator
from pure_rllib.models.export import cut_into_shards, untied_tensors, write_shards
from pure_rllib.models.fingerprints import fingerprint
from pure_rllib.models.loading import load_policy
from pure_rllib.models.stop_strings import StopStrings
from pure_rllib.testing import tiny_model_config
from pure_rllib.weight_sync.check import (
    Probe,
    StaleWeightsError,
    SyncCheck,
)
from pure_rllib.weight_sync.object_store import LiveWeights
from tests.integration.conftest import NEEDS_VLLM
from tests.integration.gloo import GlooBackend
from tests.integration.test_weight_broadcast import Client, open_gloo

pytestmark = [pytest.mark.slow, NEEDS_VLLM]

VOCAB_SIZE, PAD = 48, 0
EOS = (3, 4)
BUDGET = 48
# One layer's parts must not fit one shard.
SHARD_BYTES = 4_096
_RNG = np.random.default_rng(0)
PROMPTS = [_RNG.integers(5, VOCAB_SIZE, size=n).tolist() for n in (3, 9, 33, 70)]
SEEDS = [11, 12, 13, 14]
SEQUENCES = [_RNG.integers(0, VOCAB_SIZE, size=n).tolist() for n in (2, 40, 128)]


def policy_config(tied: bool) -> dict[str, Any]:
    # The smallest head that vLLM's attention has on CPUs.
    return tiny_model_config(
        VOCAB_SIZE,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )


@dataclass
class Engine:
    """A generator, and models with other weights to hold against it."""

    generator: VLLMGenerator
    models: list[Any]
    is_tied: bool
    top_p: float

    def load(self, number: int) -> Any:
        """Loads the weights of a model, and returns it."""
        model = self.models[number]
        self.generator.load_weights(LiveWeights.of(model, version=number))
        return model

    def gap(self, model: Any) -> float:
        """The check of the weights: the largest difference in log-probability."""
        found = self.generator.logps(SEQUENCES)
        expected = [teacher_forced(model, ids, 1) for ids in SEQUENCES]
        return max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))


def make(tied: bool, **settings: Any) -> VLLMGenerator:
    return VLLMGenerator(
        policy_config(tied),
        eos_token_ids=EOS,
        prompt_and_response_len=128,
        enforce_eager=True,
        # Small enough for the prompts to be found in the prefix cache.
        block_size=32,
        **settings,
    )


@pytest.fixture(
    scope="module",
    params=[(True, 1.0), (False, 0.8)],
    ids=["tied", "untied, top_p 0.8"],
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    tied, top_p = request.param
    backend = GlooBackend().engine_backend()
    before = process_state()
    generator = make(tied, top_p=top_p, transfer_backend=backend)
    for name, state in process_state().items():
        assert state == before[name], f"making an engine changed {name}"
    models = [load_policy(policy_config(tied), seed=seed) for seed in range(2)]
    yield Engine(generator, models, tied, top_p)
    generator.close()


def process_state() -> dict[str, Any]:
    return {
        "torch's random numbers": torch.random.get_rng_state().tolist(),
        "NumPy's random numbers": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "Python's random numbers": random.getstate(),
        "torch.set_num_threads": torch.set_num_threads,
        "threads": torch.get_num_threads(),
        "cores": os.sched_getaffinity(0),
        "LD_PRELOAD": os.environ.get("LD_PRELOAD"),
    }


@torch.inference_mode()
def teacher_forced(
    model: Any, ids: list[int], start: int, temperature: float = 1.0
) -> np.ndarray:
    """`[L - start]` log-probabilities of ids from `start` on, by transformers."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
    logps = (logits / temperature).log_softmax(-1)
    return logps.gather(1, torch.tensor(ids[start:])[:, None]).squeeze(1).numpy()


def check_responses(
    model: Any,
    groups: list[list[Response]],
    *,
    temperature: float,
    budget: int,
) -> None:
    """Log-probabilities, ends and flags of responses to `PROMPTS`."""
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for response in group:
            ids = response.token_ids.tolist()
            expected = teacher_forced(model, prompt + ids, len(prompt), temperature)
            np.testing.assert_allclose(response.logps, expected, atol=1e-3)
            assert response.token_ids.dtype == np.int64
            assert response.logps.dtype == np.float32
            assert not set(ids[:-1]) & set(EOS)
            assert response.terminated == (ids[-1] in EOS)
            assert response.terminated or len(ids) == budget


def same(first: list[list[Response]], second: list[list[Response]]) -> bool:
    pairs = zip(chain(*first), chain(*second), strict=True)
    return all(a.token_ids.tolist() == b.token_ids.tolist() for a, b in pairs)


def live(tensors: Mapping[str, torch.Tensor], version: int = 1) -> LiveWeights:
    """Tensors in several shards."""
    return LiveWeights(version, partial(cut_into_shards, tensors.items(), SHARD_BYTES))


@pytest.mark.parametrize("kind", ["tensors", "folder"])
def test_new_weights_arrive(engine: Engine, kind: str, tmp_path: Path) -> None:
    for version in (0, 1, 0):
        model, other = engine.models[version], engine.models[1 - version]
        weights = live(dict(untied_tensors(model)), version)
        if kind == "tensors":
            engine.generator.load_weights(weights)
        else:
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            write_shards(weights.shards(), folder)
            engine.generator.load_folder(folder, version)
        assert engine.generator.weights_version == version
        assert engine.gap(model) <= 1e-4
        assert engine.gap(other) > 0.1


def test_one_stale_tensor_is_seen(engine: Engine) -> None:
    model, old = engine.models
    stale = "model.layers.1.mlp.up_proj.weight"
    tensors = dict(untied_tensors(model))
    tensors[stale] = dict(untied_tensors(old))[stale]
    engine.generator.load_weights(live(tensors))
    assert engine.gap(model) > 0.1


def check_stale_tensors_are_named(generator: VLLMGenerator, model: Any) -> None:
    """Each of the policy's tensors, after an update of the last bits of some."""
    tensors = dict(untied_tensors(model))
    check = SyncCheck(limit=1.0)

    def load(version: int, sent: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        generator.load_weights(live(given, version))
        fingerprints = {n: fingerprint(t, version) for n, t in sent.items()}
        held = generator.held_tensors(version)
        check.check_tensors(version, fingerprints, held)

    load(0, tensors, tensors)
    # The last bit of each element; biases are 0 at first.
    new = {
        n: torch.where(t == 0, 1e-3, torch.nextafter(t, 2 * t))
        for n, t in tensors.items()
    }
    for version in range(1, 17):
        load(version, new, new)
    for name in tensors:
        with pytest.raises(StaleWeightsError, match=f"must hold .*{name} .*sion 17"):
            load(17, new, {**new, name: tensors[name]})


def test_each_stale_tensor_is_named_after_the_smallest_update(engine: Engine) -> None:
    check_stale_tensors_are_named(engine.generator, engine.models[0])


def test_sent_weights_arrive_and_what_was_not_sent_is_found(engine: Engine) -> None:
    new, old = (
        {name: tensor.detach() for name, tensor in untied_tensors(model)}
        for model in engine.models
    )
    logps = [teacher_forced(engine.models[0], ids, 1) for ids in SEQUENCES]
    probe = Probe(tuple(map(tuple, SEQUENCES)), tuple(logps))
    client, check = Client(engine.generator), SyncCheck(limit=0.01)

    def send(tensors: Mapping[str, torch.Tensor]) -> None:
        trainer = open_gloo(client, tensors)
        trainer.send_weights()
        trainer.shutdown()

    engine.load(1)
    send(new)
    assert check.check(1, probe, engine.generator.logps(SEQUENCES)) <= 1e-4
    stale = "model.layers.1.mlp.up_proj.weight"
    send({**new, stale: old[stale]})
    with pytest.raises(StaleWeightsError, match=r"`max_logp_gap` .*version 2 both"):
        check.check(2, probe, engine.generator.logps(SEQUENCES))
    send(new)
    assert check.check(3, probe, engine.generator.logps(SEQUENCES)) <= 1e-4
    del new["model.norm.weight"]
    with pytest.raises(ValueError, match=r"missing: \['model.norm.weight'\]"):
        send(new)
    assert engine.generator.weights_version == 3


def test_vllms_own_reload_leaves_a_tied_head_stale(engine: Engine) -> None:
    """If this fails, vLLM has mended it: `_repack_tied_head` can go."""
    engine.load(0)
    model = engine.models[1]
    engine.generator._llm.collective_rpc(
        "reload_weights", kwargs={"weights_iterator": untied_tensors(model)}
    )
    # An untied head has weights of its own, which are loaded.
    assert (engine.gap(model) > 0.1) == engine.is_tied
    engine.load(1)
    assert engine.gap(model) <= 1e-4


def test_missing_weights_are_refused(engine: Engine, tmp_path: Path) -> None:
    engine.load(0)
    tensors = dict(untied_tensors(engine.models[1]))
    del tensors["model.norm.weight"]
    write_shards(live(tensors).shards(), tmp_path)
    missing = r"missing: \['model.norm.weight'\]"
    with pytest.raises(ValueError, match=missing):
        engine.generator.load_folder(tmp_path, 1)
    assert engine.generator.weights_version == 0
    assert engine.gap(engine.models[0]) <= 1e-4
    with pytest.raises(ValueError, match=missing):
        engine.generator.load_weights(live(tensors))
    with pytest.raises(AssertionError, match="the engine has no weights"):
        engine.gap(engine.models[1])


def test_sampled_logps_are_of_the_whole_distribution(engine: Engine) -> None:
    model = engine.load(0)
    for temperature in (1.0, 0.7) if engine.top_p == 1.0 else (1.0,):
        params = SamplingParams(BUDGET, temperature, engine.top_p)
        groups = engine.generator.generate(PROMPTS, 8, params, SEEDS)
        check_responses(model, groups, temperature=temperature, budget=BUDGET)
        ended = [response.terminated for group in groups for response in group]
        assert 0 < sum(ended) < len(ended), "both kinds of end must have been seen"
        last = {int(r.token_ids[-1]) for group in groups for r in group}
        assert set(EOS) <= last, "every end-of-sequence token must have been seen"


def test_greedy_is_that_of_transformers(engine: Engine) -> None:
    """Across an update: what the prefix cache holds of the old weights is not read."""
    params = SamplingParams(BUDGET, temperature=0.0)
    for number in (0, 1):
        model = engine.load(number)
        reference = TransformersGenerator(model, pad_token_id=PAD, eos_token_ids=EOS)
        groups = engine.generator.generate(PROMPTS, 2, params, SEEDS)
        expected = reference.generate(PROMPTS, 2, params, SEEDS)
        assert same(groups, expected)
        check_responses(model, groups, temperature=1.0, budget=BUDGET)
        (output,) = engine.generator._run(
            [PROMPTS[-1]], [engine.generator._vllm.SamplingParams(max_tokens=1)]
        )
        assert output.num_cached_tokens == 64, "the prefix cache is on"


def letters() -> Any:
    """A tokenizer whose ids are one letter each."""
    vocabulary = {chr(ord("0") + i): i for i in range(VOCAB_SIZE)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def cut(response: Response, stop: StopStrings) -> Response:
    """What a response that was sampled without stop strings becomes with them."""
    ids = response.token_ids
    for num in range(1, len(ids) + 1):
        if stop.begins_at(ids[:num]) is not None:
            return Response(ids[:num], response.logps[:num], True)
    return response


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_strings_end_responses_as_transformers(
    engine: Engine, temperature: float
) -> None:
    model, generator, tokenizer = engine.load(0), engine.generator, letters()
    params = SamplingParams(BUDGET, temperature, engine.top_p)
    free = generator.generate(PROMPTS, 4, params, SEEDS)
    texts = [tokenizer.decode(r.token_ids) for group in free for r in group]
    longest = max(texts, key=len)
    stop = StopStrings(tokenizer, [longest[3:5], longest[9]], VOCAB_SIZE)
    generator.stop = stop
    try:
        rows = generator.generate(PROMPTS, 4, params, SEEDS)
        requests = [Request(p, params, 7) for p in PROMPTS]
        streamed = {one.number: one for one in generator.stream(requests)}
    finally:
        generator.stop = None
    expected = [[cut(response, stop) for response in group] for group in free]
    assert same(rows, expected)
    assert not same(rows, free)
    for i, prompt in enumerate(PROMPTS):
        (whole,) = generator.stream([Request(prompt, params, 7)])
        response = cut(Response(whole.token_ids, np.zeros(0), whole.terminated), stop)
        assert streamed[i].token_ids.tolist() == response.token_ids.tolist()
        assert streamed[i].terminated == response.terminated
    if temperature == 0.0:
        reference = TransformersGenerator(
            model, pad_token_id=PAD, eos_token_ids=EOS, stop=stop
        )
        assert same(rows, reference.generate(PROMPTS, 4, params, SEEDS))
    assert same(generator.generate(PROMPTS, 4, params, SEEDS), free)


def test_a_response_depends_on_its_own_seed_only(engine: Engine) -> None:
    engine.load(0)
    params = SamplingParams(BUDGET, 1.0, engine.top_p)
    generate: Callable[..., Any] = engine.generator.generate
    groups = generate(PROMPTS, 4, params, SEEDS)
    assert same(groups, generate(PROMPTS, 4, params, SEEDS))
    assert same(groups[::-1], generate(PROMPTS[::-1], 4, params, SEEDS[::-1]))
    assert same(groups[1:2], generate(PROMPTS[1:2], 4, params, SEEDS[1:2]))
    assert same([group[:2] for group in groups], generate(PROMPTS, 2, params, SEEDS))
    assert not same(groups, generate(PROMPTS, 4, params, [seed + 1 for seed in SEEDS]))
    assert not same([[response] for response in groups[0]], [[groups[0][0]]] * 4)
    huge = generate(PROMPTS[:1], 2, params, [2**64 + 5])
    assert same(huge, generate(PROMPTS[:1], 2, params, [2**64 + 5]))


def test_weights_change_between_two_tokens(engine: Engine) -> None:
    params = SamplingParams(BUDGET, 1.0, engine.top_p)
    generator = engine.generator

    def fly(new: int) -> list[list[Response]]:
        """Six tokens with the first weights, the others with new ones."""
        engine.load(0)
        names = generator.begin(PROMPTS, 4, params, SEEDS)
        for _ in range(6):
            assert generator.advance(names, 0.0) is None
        # Another's call in between goes its own way, and they go on meanwhile.
        engine.load(new)
        generator.logps(SEQUENCES)
        done: dict[str, list[Response]] = {}
        while len(done) < len(names):
            found = generator.advance([n for n in names if n not in done], 1.0)
            done |= [found] if found else []
        return [done[name] for name in names]

    groups = fly(1)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for response in group:
            assert response.versions is not None
            ids, versions = response.token_ids.tolist(), response.versions
            assert (np.diff(versions) >= 0).all()
            for number in {*versions.tolist()}:
                told = teacher_forced(engine.models[number], prompt + ids, len(prompt))
                mine = versions == number
                np.testing.assert_allclose(response.logps[mine], told[mine], atol=1e-3)
    both = [r for g in groups for r in g if set(r.versions.tolist()) == {0, 1}]  # type: ignore[union-attr]
    assert both, "no response was under way"
    # Weights that are the same change no id, and an abort leaves nothing behind.
    assert same(fly(0), generator.generate(PROMPTS, 4, params, SEEDS))
    generator.abort(generator.begin(PROMPTS, 4, params, SEEDS))
    assert not generator._llm.llm_engine.has_unfinished_requests()


def test_tokens_come_as_often_as_their_probability_says(engine: Engine) -> None:
    model = engine.load(0)
    temperature = 0.7 if engine.top_p == 1.0 else 1.0
    params = SamplingParams(1, temperature, engine.top_p)
    num_seeds, group_size = 16, 256
    groups = engine.generator.generate(
        [PROMPTS[1]] * num_seeds, group_size, params, range(num_seeds)
    )
    drawn = np.array([r.token_ids[0] for group in groups for r in group])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([PROMPTS[1]])).logits[0, -1].float()
    probs = (logits / temperature).softmax(-1).numpy().astype(np.float64)
    order = np.argsort(-probs)
    kept = order[np.cumsum(probs[order]) - probs[order] < engine.top_p]
    share = np.zeros_like(probs)
    share[kept] = probs[kept] / probs[kept].sum()
    expected, counts = share * len(drawn), np.bincount(drawn, minlength=len(probs))
    assert (counts[share == 0] == 0).all(), "a token outside the nucleus was sampled"
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    # Mean k and variance 2 k for k tokens: six deviations above the mean is 1 in 1e7.
    k = common.sum()
    assert k >= 5
    assert chi_square < k + 6 * np.sqrt(2 * k)


def test_more_prompts_than_fit_one_pass_are_sampled(engine: Engine) -> None:
    """vLLM's CPU build takes 4,096 tokens at a time, and no prompt in parts."""
    model = engine.load(0)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(5, VOCAB_SIZE, size=110).tolist() for _ in range(60)]
    params = SamplingParams(8, 1.0, engine.top_p)
    groups = engine.generator.generate(prompts, 2, params, range(60))
    for number in (0, 37, 59):
        alone = engine.generator.generate([prompts[number]], 2, params, [number])
        assert same(alone, [groups[number]])
    ids = prompts[59] + groups[59][1].token_ids.tolist()
    expected = teacher_forced(model, ids, 110)
    np.testing.assert_allclose(groups[59][1].logps, expected, atol=1e-3)


def test_calls_that_cannot_work_are_refused(engine: Engine) -> None:
    engine.load(0)
    generate = engine.generator.generate
    with pytest.raises(ValueError, match=r"`max_response_tokens` \(100\) and the long"):
        generate(PROMPTS, 2, SamplingParams(100), SEEDS)
    with pytest.raises(ValueError, match="at least one token"):
        generate([[]], 2, SamplingParams(4), [0])
    with pytest.raises(ValueError, match="must have 2 to 128"):
        engine.generator.logps([[5] * 129])
    params, name = (
        (SamplingParams(4, 1.0, 0.9), "top_p")
        if engine.top_p == 1.0
        else (SamplingParams(4, 0.7, 1.0), "temperature")
    )
    with pytest.raises(ValueError, match=f"`{name}`"):
        generate(PROMPTS, 2, params, SEEDS)


def test_a_new_engine_samples_the_same() -> None:
    params = SamplingParams(BUDGET)
    model = load_policy(policy_config(True), seed=0)
    seen: list[list[list[Response]]] = []
    for _ in range(2):
        generator = make(True)
        generator.load_weights(LiveWeights.of(model, 1))
        seen.append(generator.generate(PROMPTS, 4, params, SEEDS))
        generator.close()
    assert same(*seen)
    check_responses(model, seen[0], temperature=1.0, budget=BUDGET)


def test_an_engine_that_fails_leaves_its_dump_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    generator = make(True)
    generator.load_weights(LiveWeights.of(load_policy(policy_config(True)), 1))

    def lose_the_sampler(worker: Any) -> None:
        del worker.model_runner.sampler

    generator._llm.collective_rpc(lose_the_sampler)
    with pytest.raises(EngineError, match="vLLM failed while 4 prompts were run: Attr"):
        generator.generate(PROMPTS, 2, SamplingParams(4), SEEDS)
    (log,) = tmp_path.glob("*.log")
    content = log.read_text()
    assert "has no attribute 'sampler'" in content
    assert "Dumping input data for V1 LLM engine" in content
    generator.close()


def test_bfloat16_weights_arrive() -> None:
    config = policy_config(True)
    models = [load_policy(config, seed=seed, dtype="bfloat16") for seed in range(2)]
    exact = [copy.deepcopy(model).float() for model in models]
    generator = make(True, dtype="bfloat16")
    engine = Engine(generator, models, True, 1.0)
    for number in (0, 1, 0):
        engine.load(number)
        # Rounding is off by up to 0.6 with weights as large as these, in transformers
        # too; other weights are off by more than 5.
        assert engine.gap(exact[number]) < 1.0
        assert engine.gap(exact[1 - number]) > 5.0
    check_stale_tensors_are_named(generator, models[0])
    generator.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eos_token_ids": []}, "`eos_token_ids` must hold at least one id"),
        ({"eos_token_ids": [48]}, r"`eos_token_ids` \(48\) must lie in \[0, 48\)"),
        ({"max_model_len": 64}, r"max_model_len` \(64\) must be at least 128"),
        ({"seed": 1}, "must not hold `seed`"),
        ({"model": tiny_model_config(48)}, r"`head_dim` \(8\) must be one of \[32, "),
    ],
)
def test_what_cannot_work_is_said_before_an_engine_is_made(
    arguments: dict[str, Any], message: str
) -> None:
    arguments = {"model": policy_config(True), "eos_token_ids": EOS, **arguments}
    with pytest.raises(ValueError, match=message):
        VLLMGenerator(**arguments, prompt_and_response_len=128)
