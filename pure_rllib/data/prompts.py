"""Prompt templates: from a problem's text to the token ids that the policy is given."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pure_rllib.credit.steps import own_bos_id
from pure_rllib.data.problems import ListProblems, ProblemSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_SIZE = 1024


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    r"""Says how a problem's text becomes a prompt.

    Attributes:
        template: text with `{problem}` once, in the syntax of `str.format`: any other
            brace is doubled, as in "put it within \boxed{{}}". Braces in the problem's
            text mean nothing.
        chat: whether the text becomes the user's message in the tokenizer's own chat
            template, which then asks for the assistant's turn.
        system: the system message; only with `chat`. None leaves it to the template.

    Raises:
        ValueError: the template has other fields than `{problem}`, or a system message
            is given without `chat`.
    """

    template: str = "{problem}"
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        self._check_template()
        if self.system is not None and not self.chat:
            raise ValueError(
                f"`system` ({self.system!r:.60}) must be left out without `chat`; "
                "because plain prompts have no system message. Set chat=True, or write "
                "it into the template."
            )

    def _check_template(self) -> None:
        try:
            parsed = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise self._template_error(str(error)) from error
        fields = [field for _, field, _, _ in parsed if field is not None]
        if fields != ["problem"]:
            raise self._template_error(f"its fields are {fields}")
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise self._template_error("{problem} takes no conversion or format")

    def _template_error(self, reason: str) -> ValueError:
        return ValueError(
            f"`template` ({self.template!r:.200}) must hold {{problem}} exactly once "
            f"and no other field; because {reason}. Set doubled braces, {{{{ and }}}}, "
            "where braces are meant as they are."
        )

    def fill(self, problem: str) -> str:
        """Returns the template with the problem's text in its place."""
        return self.template.format(problem=problem)

    def encode(self, problem: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Returns the prompt's token ids. See `encode_batch`."""
        return self.encode_batch([problem], tokenizer)[0]

    def encode_batch(
        self, problems: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[list[int]]:
        """Encodes many problems at once.

        The prompt begins with one BOS token where the tokenizer or its chat template
        wants one, and never ends with EOS by the tokenizer's own doing.

        Args:
            problems: N texts.
            tokenizer: the policy's.

        Returns:
            N lists of token ids, of any length.

        Raises:
            ValueError: `chat` is set and the tokenizer has no chat template.
        """
        if not problems:
            return []
        texts = [self.fill(problem) for problem in problems]
        if self.chat:
            texts = [self._chat_text(text, tokenizer) for text in texts]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        bos = None if self.chat else own_bos_id(tokenizer)
        return [
            [bos, *row] if bos is not None and row[:1] != [bos] else list(row)
            for row in ids
        ]

    def _chat_text(self, text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        if not tokenizer.chat_template:
            raise ValueError(
                f"`chat` ({self.chat}) must be off for the tokenizer of "
                f"{tokenizer.name_or_path!r}; because it has no chat template. Set "
                'chat=False, or the template "plain".'
            )
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert isinstance(rendered, str), f"Rendered to {type(rendered)}, not text."
        return rendered


_BOXED_INSTRUCTION = (
    r"Please reason step by step, and put your final answer within \boxed{}."
)
TEMPLATES: dict[str, PromptTemplate] = {
    "plain": PromptTemplate(),
    # The prompt of Qwen2.5-Math's evaluation and of PURE's training.
    "pure": PromptTemplate(chat=True, system=_BOXED_INSTRUCTION),
}


def make_template(
    template: str | Mapping[str, Any] | PromptTemplate,
) -> PromptTemplate:
    """Makes a template of what a configuration file can hold.

    Args:
        template: a name ("plain", "pure"), a text with `{problem}`, the fields of
            `PromptTemplate` by name, or a template.

    Raises:
        ValueError: no such name, or the template is not valid.
        TypeError: a field that `PromptTemplate` does not have.
    """
    if isinstance(template, PromptTemplate):
        return template
    if isinstance(template, Mapping):
        return PromptTemplate(**template)
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{" in template:
        return PromptTemplate(template)
    raise ValueError(
        f"`template` ({template!r}) must be a known name or a text with {{problem}}; "
        f"because the problem has to go somewhere. Set it to {' or '.join(TEMPLATES)}."
    )


def drop_long_prompts(
    source: ProblemSource,
    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    max_prompt_tokens: int,
) -> tuple[ListProblems, int]:
    """Leaves out the problems whose prompts are too long.

    Args:
        source: the problems; all of them are read.
        encode: from N problem texts to N lists of token ids, such as
            `functools.partial(template.encode_batch, tokenizer=tokenizer)`.
        max_prompt_tokens: >= 1, template included.

    Returns:
        The problems that are left, in their order, and how many were dropped.

    Raises:
        ValueError: every prompt is too long.
    """
    kept = []
    shortest = None
    for start in range(0, len(source), _BATCH_SIZE):
        stop = min(start + _BATCH_SIZE, len(source))
        batch = [source[index] for index in range(start, stop)]
        rows = encode([problem.prompt for problem in batch])
        for problem, ids in zip(batch, rows, strict=True):
            shortest = min(len(ids), shortest or len(ids))
            if len(ids) <= max_prompt_tokens:
                kept.append(problem)
    if not kept:
        raise ValueError(
            f"`max_prompt_tokens` ({max_prompt_tokens}) must be >= {shortest}; because "
            f"the shortest of all {len(source)} prompts has as many tokens. Set "
            f"max_prompt_tokens={shortest} or more."
        )
    return ListProblems(kept), len(source) - len(kept)
