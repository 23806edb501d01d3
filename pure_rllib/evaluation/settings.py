"""The settings of an evaluation, each with its rule; a YAML file has the same names."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, FiniteFloat

from pure_rllib.generation.make_generator import GeneratorName
from pure_rllib.setting_types import (
    Count,
    NaturalNumber,
    NonEmptyText,
    NonNegativeFloat,
    PositiveFloat,
    check_fields,
    check_setting,
)

DEFAULT_TEMPLATE = "pure_paper"
DEFAULT_BUDGET = 3000
"""Response tokens, as published."""
_BATCH_SIZE = 32
_TopP = Annotated[FiniteFloat, Field(gt=0, le=1)]
_Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_Settings = TypeVar("_Settings")


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What is evaluated, and on which engines.

    Attributes:
        model: folder in Hugging Face layout, hub id or `embedded:<name>`.
        generator: "transformers" or "vllm".
        engines: how many, a Ray actor each. No response depends on it.
        dtype: of the weights; "auto" is the checkpoint's.
        trust_remote_code: allow code that comes with the model.
        generator_kwargs: further settings of the generator; `max_batch_size` of
            transformers is 32 by default.
        num_cpus: of each engine.
        num_gpus: of each engine; None: one per part of `tensor_parallel_size` where
            there are GPUs.
    """

    model: str
    generator: GeneratorName = "transformers"
    engines: Count = 1
    dtype: _Dtype = "auto"
    trust_remote_code: bool = False
    generator_kwargs: dict[str, Any] = field(default_factory=dict)
    num_cpus: PositiveFloat = 1.0
    num_gpus: NonNegativeFloat | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def batch_size(self) -> int:
        """Rows that the transformers generator decodes at once."""
        return int(self.generator_kwargs.get("max_batch_size", _BATCH_SIZE))


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How problems are asked.

    Attributes:
        greedy: one response per problem at temperature 0.
        repeat_greedy: a second one, to count the problems whose responses differ.
        samples: n sampled responses per problem; None: as the benchmark's card says.
        temperature: of the samples, > 0.
        top_p: nucleus of the samples.
        max_response_tokens: budget; None: the environment's, else 3,000.
        stop: strings that end a response beside EOS, as in `env_runners`.
        shorten_budget: where a prompt and the budget are over the model's context,
            shorten that problem's budget, as vLLM does by itself; else it is an error.
        template: name, text or fields of a prompt template; None: the environment's,
            else "pure_paper".
        seed: together with the problem's and the sample's number it is all that a
            response depends on, beside the policy.
    """

    greedy: bool = True
    repeat_greedy: bool = False
    samples: NaturalNumber | None = None
    temperature: PositiveFloat = 0.6
    top_p: _TopP = 0.95
    max_response_tokens: Count | None = None
    stop: list[NonEmptyText] = field(default_factory=list)
    shorten_budget: bool = False
    template: str | dict[str, Any] | None = None
    seed: NaturalNumber = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.greedy and self.repeat_greedy:
            raise ValueError(
                "`sampling.repeat_greedy` (True) has no effect without `greedy`, "
                "because no greedy response is asked for. Set greedy to True."
            )
        if not self.greedy and self.samples == 0:
            raise ValueError(
                "`sampling.samples` (0) must be >= 1 without `greedy`, because nothing "
                "else is asked for. Set it to 8."
            )


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Who judges the reasoning of right answers.

    Attributes:
        kind: "checker" (exact, where the environment has one), "prm" or "lm" (a
            language model that is asked).
        model: folder, hub id or `embedded:<name>` of a PRM or a language model.
        threshold: of a PRM: reasoning is right if its lowest step is above.
        prm_kwargs: of a PRM, as an environment's.
        verdicts: of a language model, per chain of thought.
        temperature: of its verdicts.
        max_verdict_tokens: of its verdicts.
        generator: of a language model.
        generator_kwargs: likewise.
        dtype: likewise.
        num_gpus: of the judge; None: one where there are GPUs.
    """

    kind: Literal["checker", "prm", "lm"]
    model: str | None = None
    threshold: FiniteFloat = 0.0
    prm_kwargs: dict[str, Any] = field(default_factory=dict)
    verdicts: Count = 3
    temperature: PositiveFloat = 0.6
    max_verdict_tokens: Count = 4096
    generator: GeneratorName = "transformers"
    generator_kwargs: dict[str, Any] = field(default_factory=dict)
    dtype: _Dtype = "auto"
    num_gpus: NonNegativeFloat | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.model is None) != (self.kind == "checker"):
            raise ValueError(
                f"`judge.model` ({self.model}) must be given for a `prm` or an `lm` "
                f"and only there, and the judge is `{self.kind}`. Set --judge checker, "
                "prm:FOLDER or lm:FOLDER."
            )


def settings_of(
    cls: type[_Settings], section: str, values: Mapping[str, Any]
) -> _Settings:
    """Makes a section's settings; errors name the section.

    Raises:
        ValueError: an unknown key, a missing one, or a value out of its range.
    """
    check_setting(section, values, dict[str, Any])
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"unknown key `{unknown[0]}` in section `{section}`. It may hold "
            f"{', '.join(known)}."
        )
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"section `{section}`: {error}") from error
    except ValueError as error:
        text = str(error)
        named = text if f"`{section}." in text else f"{section}: {text}"
        raise ValueError(named) from error
