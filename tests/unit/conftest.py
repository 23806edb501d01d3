"""What several unit tests set up alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForTokenClassification

from pure_rllib.cli.main import main
from pure_rllib.models.loading import policy_config, random_model

SaveModel = Callable[..., str]
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that asks for something wrong; returns what it says."""

    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "Traceback" not in error, error
        return error

    return run


@pytest.fixture
def save_model() -> SaveModel:
    """Saves a model of random weights with a tokenizer, by default one of two labels.

    Called with the folder, which is returned, the model's config and the tokenizer; and
    maybe another `auto_class` and `seed`.
    """

    def save(
        folder: Path,
        config: Mapping[str, Any],
        tokenizer: Any,
        auto_class: Any = AutoModelForTokenClassification,
        seed: int = 0,
    ) -> str:
        if auto_class is AutoModelForTokenClassification:
            config = {"num_labels": 2, **config}
        random_model(auto_class, policy_config(config), seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


QWEN2_5 = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936),
    "3B": (2048, 11_008, 36, 16, 2, 151_936),
    "7B": (3584, 18_944, 28, 28, 4, 152_064),
}
"""Hidden and MLP size, layers, heads, heads of keys and values, vocabulary."""


def qwen2_5(name: str) -> dict[str, Any]:
    """The config of a Qwen2.5 model, by its size."""
    hidden, wide, layers, heads, kv_heads, vocab_size = QWEN2_5[name]
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab_size,
        "tie_word_embeddings": name != "7B",
    }
