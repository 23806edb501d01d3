r"""How different process reward models want to be asked, one description each.

A format says what follows a step (the separator), what stands before the steps (the
prompt) and where the score is read. `docs/rewards.md` shows all of them side by side.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal, get_args

from pure_rllib.credit.steps import single_token_id

Head = Literal["labels", "tokens"]
PromptStyle = Literal["policy", "chat", "text"]

_BAD_WORDS = {"bad", "incorrect", "wrong", "negative", "false", "no", "-"}
_GOOD_WORDS = {"good", "correct", "right", "positive", "true", "yes", "+"}


@dataclass(frozen=True, slots=True)
class PRMFormat:
    r"""One way to show steps to a process reward model and to read its scores.

    Attributes:
        name: of the format.
        head: "labels" reads two classes of a token classifier, "tokens" the logits of
            two verdict tokens of a causal language model; both at the separators.
        separator: text of the token after each step; exactly one id.
        prompt: "policy" shows the ids that the policy was given, "chat" puts the
            problem into the reward model's own chat template, "text" shows the
            problem's text as it is.
        system: the system message with "chat"; None leaves it to the template.
        verdicts: texts of the good and of the bad verdict token, with "tokens".
        step: a step's text, with `{step}` once and maybe `{n}`, its number from 1. Only
            where steps are shown as text.
        between: text between a separator and the next step.
        prompt_end: text between a "text" prompt and the first step.
    """

    name: str
    head: Head
    separator: str
    prompt: PromptStyle
    system: str | None = None
    verdicts: tuple[str, str] = ("", "")
    step: str = "{step}"
    between: str = ""
    prompt_end: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("head", Head), ("prompt", PromptStyle)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"`prm_format` ({name} {getattr(self, name)!r}) must have one of "
                    f"{get_args(allowed)} there."
                )
        if self.step.count("{step}") != 1:
            raise ValueError(
                f"`prm_format` (step {self.step!r}) must hold {{step}} exactly once, "
                'because the step\'s text goes there. Set step to "{step}".'
            )
        if self.head == "tokens" and (
            len(self.verdicts) != 2 or not all(self.verdicts)
        ):
            raise ValueError(
                f"`prm_format` (verdicts {self.verdicts}) must name the good and the "
                'bad verdict, because a causal model is read there. Set ("+", "-").'
            )

    def step_text(self, number: int, text: str) -> str:
        """Returns what is shown of a step; `number` counts from 1."""
        before, after = self.step.split("{step}")
        n = str(number)
        return before.replace("{n}", n) + text + after.replace("{n}", n)


FORMATS: dict[str, PRMFormat] = {
    # PURE (arXiv 2504.15275) and TRL's PRM trainer.
    "newline": PRMFormat("newline", "labels", "\n", "policy"),
    # Qwen2.5-Math-PRM (arXiv 2501.07301), as its model card asks it.
    "extra_0": PRMFormat(
        "extra_0",
        "labels",
        "<extra_0>",
        "chat",
        system=(
            r"Please reason step by step, and put your final answer within \boxed{}."
        ),
    ),
    # Math-Shepherd (arXiv 2312.08935), as its model card asks it.
    "math_shepherd": PRMFormat(
        "math_shepherd",
        "tokens",
        "ки",
        "text",
        verdicts=("+", "-"),
        step="Step {n}: {step}",
        between="\n",
        prompt_end=" ",
    ),
}


def make_format(
    given: "str | Mapping[str, Any] | PRMFormat | None",
    *,
    architecture: str | None,
    tokenizer: Any,
    separator: str | None = None,
    names: Iterable[str | None] = (),
) -> PRMFormat:
    """Returns the format that is set, or the one that the checkpoint is made for.

    Args:
        given: a name, a mapping with `name` (of the format to start from) and the
            fields to change, a format, or None: by the checkpoint.
        architecture: the model's class, such as `Qwen2ForTokenClassification`, or None
            if the checkpoint does not say.
        tokenizer: the reward model's.
        separator: changes the separator; None keeps it.
        names: what the checkpoint is called: its path, the name in its config. A causal
            model says nowhere else that it was trained like Math-Shepherd: Mistral's
            and other vocabularies hold its three tokens by chance.

    Raises:
        ValueError: no such format, or none fits the checkpoint.
    """
    fields: dict[str, Any] = {}
    if isinstance(given, Mapping):
        fields = dict(given)
        given = fields.pop("name", None)
        if "verdicts" in fields:
            fields["verdicts"] = tuple(fields["verdicts"])
    if given is None or given == "auto":
        chosen = _detect(architecture, tokenizer, names)
    elif isinstance(given, PRMFormat):
        chosen = given
    elif given in FORMATS:
        chosen = FORMATS[given]
    else:
        raise ValueError(
            f"`prm_format` ({given!r}) must be one of {sorted(FORMATS)}, because steps "
            "are shown to the reward model as it was trained. Leave it out to have it "
            "chosen by the checkpoint."
        )
    unknown = set(fields) - set(PRMFormat.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"`prm_format` has unknown fields {sorted(unknown)}; it may hold "
            f"{sorted(PRMFormat.__dataclass_fields__)}."
        )
    if separator is not None:
        fields["separator"] = separator
    return replace(chosen, **fields)


def _detect(
    architecture: str | None, tokenizer: Any, names: Iterable[str | None]
) -> PRMFormat:
    """Chooses by class and vocabulary; the rules are those of `docs/rewards.md`."""
    name = architecture or ""
    if name.endswith("ForProcessRewardModel"):
        return FORMATS["extra_0"]
    if name.endswith("ForTokenClassification"):
        has_marker = FORMATS["extra_0"].separator in tokenizer.get_vocab()
        return FORMATS["extra_0" if has_marker else "newline"]
    reason = "no format is known for this class"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        shepherd = FORMATS["math_shepherd"]
        texts = [shepherd.separator, *shepherd.verdicts]
        # A folder's own name: those above it say nothing of the model.
        own_names = [PurePath(name).name.lower() for name in names if name]
        is_named = any("shepherd" in name for name in own_names)
        if is_named and all(_is_one_token(tokenizer, text) for text in texts):
            return shepherd
        reason = "a causal model may have been trained to be asked in many ways"
        if is_named:
            reason = (
                f"this one is asked with the tokens {', '.join(map(repr, texts))}, "
                "which are not one id each in its tokenizer"
            )
    raise ValueError(
        f"`prm` (a {architecture or 'model of an unnamed class'}) must be a token "
        "classifier with two labels, a `...ForProcessRewardModel`, or a causal model "
        f'with "shepherd" in its name; because {reason}. Set `prm_format` to one of '
        f'{sorted(FORMATS)}, or to "generative" for a model that answers in words.'
    )


def _is_one_token(tokenizer: Any, text: str) -> bool:
    try:
        single_token_id(tokenizer, text)
    except ValueError:
        return False
    return True


def format_ids(
    chosen: PRMFormat, tokenizer: Any, config: Any
) -> tuple[int, tuple[int, int]]:
    """Looks up where a format's scores are read.

    Args:
        chosen: the format.
        tokenizer: the reward model's.
        config: the reward model's Hugging Face config, or its content as a mapping.

    Returns:
        The separator's id; and the columns of the good and of the bad verdict in the
        model's logits: label numbers, or ids of the verdict tokens.

    Raises:
        ValueError: the separator or a verdict is not exactly one id, the model has not
            two labels, or there is no chat template though the format wants one.
    """
    separator_id = _one_id(chosen, tokenizer, "separator", chosen.separator)
    if chosen.prompt == "chat" and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"`prm_format` ({chosen.name}) must not ask for a chat template, because "
            "the reward model's tokenizer has none. Set "
            f'prm_format={{"name": "{chosen.name}", "prompt": "text"}}.'
        )
    if chosen.head == "labels":
        return separator_id, _label_columns(config)
    good, bad = (_one_id(chosen, tokenizer, "verdict", v) for v in chosen.verdicts)
    if good == bad:
        raise ValueError(
            f"`prm_format` (verdicts {chosen.verdicts}) must name two tokens, because "
            f"the score is their difference; both are id {good}."
        )
    return separator_id, (good, bad)


def _one_id(chosen: PRMFormat, tokenizer: Any, role: str, text: str) -> int:
    try:
        return single_token_id(tokenizer, text)
    except ValueError as error:
        raise ValueError(
            f"`prm_format` ({chosen.name}, {role} {text!r}) must have a {role} that is "
            "exactly one token of the reward model's tokenizer, because scores are "
            f"read there. Set another format, or another {role}."
        ) from error


def _label_columns(config: Any) -> tuple[int, int]:
    """Columns of the good and the bad label: 1 and 0 unless their names differ."""
    if not isinstance(config, Mapping):
        config = {"num_labels": config.num_labels, "id2label": config.id2label}
    labels = config.get("id2label") or {}
    # A config with two labels, transformers' default, need not say so.
    num_labels = len(labels) or config.get("num_labels", 2)
    if num_labels != 2:
        raise ValueError(
            f"The process reward model's `num_labels` ({num_labels}) must be 2 because "
            "a step's score is p(good) - p(bad). Use a checkpoint made for token "
            "classification with two labels."
        )
    names = {int(i): str(label).strip().lower() for i, label in labels.items()}
    if names.get(0) in _GOOD_WORDS and names.get(1) in _BAD_WORDS:
        return 0, 1
    return 1, 0
