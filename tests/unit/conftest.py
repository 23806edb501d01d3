"""What several unit tests set up alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForTokenClassification

from benchmarks.shapes import SHAPES
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


def qwen2_5(name: str) -> dict[str, Any]:
    """The config of a Qwen2.5 model, by its size."""
    return dict(SHAPES[f"qwen2.5-{name.lower()}"])
