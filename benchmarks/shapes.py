"""Configs of models that benchmarks give random weights, by name."""

from typing import Any


def _qwen2(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_value_heads: int = 2,
    vocab: int = 151_936,
    **fields: Any,
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        **fields,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _qwen2(64, 128, 2, 4, vocab=512),
    "toy": _qwen2(256, 704, 4, 4, vocab=8192),
    "30m": _qwen2(512, 1408, 8, 8, vocab=8192),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12),
    "qwen2.5-3b": _qwen2(2048, 11_008, 36, 16),
    "qwen2.5-7b": _qwen2(
        3584, 18_944, 28, 28, 4, vocab=152_064, tie_word_embeddings=False
    ),
}
