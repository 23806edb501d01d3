"""What is decided about a vLLM engine without vLLM."""

from types import SimpleNamespace

from pure_rllib.generation.vllm_engine import _cpu_kv_cache_bytes, parameter_names
from pure_rllib.generation.vllm_generator import engine_seed
from pure_rllib.testing import tiny_model_config


def test_the_cache_on_a_cpu_holds_all_sequences_up_to_a_limit():
    config = SimpleNamespace(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        hidden_size=128,
        head_dim=None,
    )
    # 256 sequences of 150 tokens are 512 blocks of 128 tokens, and one is vLLM's own;
    # a token takes 2 layers x 1 head x 32 numbers x 4 bytes, for keys and for values.
    assert _cpu_kv_cache_bytes(config, 150, 256) == 513 * 128 * 2 * 32 * 4 * 2
    assert _cpu_kv_cache_bytes(config, 100_000, 256) == 2**30


def test_tied_parameters_have_one_name():
    names = [
        parameter_names(
            tiny_model_config(32, tie_word_embeddings=tied), trust_remote_code=False
        )
        for tied in (True, False)
    ]
    assert names[1] - names[0] == {"lm_head.weight"}
    assert "model.embed_tokens.weight" in names[0]


def test_seeds_of_neighbouring_prompts_do_not_meet():
    seeds = [engine_seed(seed) for seed in [*range(1000), -1, 2**64 + 5]]
    assert all(0 <= seed < 2**62 for seed in seeds)
    # Response g of a prompt is given the prompt's seed plus g.
    gaps = [b - a for a, b in zip(sorted(seeds), sorted(seeds)[1:], strict=False)]
    assert min(gaps) > 10_000
    assert engine_seed(7) == engine_seed(7)
