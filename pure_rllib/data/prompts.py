"""Prompt templates: from a problem's text to the token ids that the policy is given."""

import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pure_rllib.credit.steps import own_bos_id
from pure_rllib.data.chat import ChatForm
from pure_rllib.data.encoding import encode_shielded, shield
from pure_rllib.data.problems import ListProblems, Problem, ProblemSource

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
            template, which then asks for the assistant's turn. A template that reads
            content blocks is given these; one without a system message is given it
            before the user's text.
        system: the system message; only with `chat`. None leaves it to the template.
        template_kwargs: variables of the chat template, such as `enable_thinking`;
            only with `chat`.

    Raises:
        ValueError: the template has other fields than `{problem}`, or a system message
            or variables are given without `chat`.
    """

    template: str = "{problem}"
    chat: bool = False
    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_template()
        if self.system is not None and not self.chat:
            raise ValueError(
                f"`system` ({self.system!r:.60}) must be left out without `chat`; "
                "because plain prompts have no system message. Set chat=True, or write "
                "it into the template."
            )
        if self.template_kwargs and not self.chat:
            raise ValueError(
                f"`template_kwargs` ({dict(self.template_kwargs)}) must be left out "
                "without `chat`; because no chat template reads them. Set chat=True."
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

    def check(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Makes sure that a tokenizer's chat template shows what it is given.

        Raises:
            ValueError: it does not; see `ChatForm`.
        """
        if self.chat:
            roles = ["user"] if self.system is None else ["system", "user"]
            ChatForm.of(tokenizer, roles, variables=self.template_kwargs)

    def encode(
        self, problem: str | Problem, tokenizer: "PreTrainedTokenizerBase"
    ) -> list[int]:
        """Returns the prompt's token ids. See `encode_batch`."""
        return self.encode_batch([problem], tokenizer)[0]

    def encode_batch(
        self, problems: Sequence[str | Problem], tokenizer: "PreTrainedTokenizerBase"
    ) -> list[list[int]]:
        """Encodes many problems at once.

        The prompt begins with one BOS token where the tokenizer or its chat template
        wants one, and never ends with EOS by the tokenizer's own doing. Nothing in a
        problem's text becomes a special token.

        Args:
            problems: N texts, or problems, which may have messages before.
            tokenizer: the policy's.

        Returns:
            N lists of token ids, of any length.

        Raises:
            ValueError: `chat` is set and the tokenizer's chat template is missing or
                cannot show the messages; or it is not, and there are messages.
        """
        if not problems:
            return []
        ids = encode_shielded(tokenizer, [self._text(p, tokenizer) for p in problems])
        bos = own_bos_id(tokenizer)
        return [
            [bos, *row] if bos is not None and row[:1] != [bos] else row for row in ids
        ]

    def _text(
        self, problem: str | Problem, tokenizer: "PreTrainedTokenizerBase"
    ) -> str:
        """Writes a prompt, shielded where it is the problem's own text."""
        if isinstance(problem, str):
            problem = Problem(problem)
        text = self.fill(shield(tokenizer, problem.prompt))
        if not self.chat:
            self._check_no_history(problem)
            return text
        messages = [
            {**message, "content": shield(tokenizer, message["content"])}
            for message in problem.history
        ]
        if self.system is not None:
            self._check_one_system(problem)
            messages.insert(0, {"role": "system", "content": self.system})
        messages.append({"role": "user", "content": text})
        roles = [message["role"] for message in messages]
        form = ChatForm.of(tokenizer, roles, variables=self.template_kwargs)
        return form.render(messages, tokenizer)

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> str:
        """Returns messages in the chat template, up to the assistant's next turn.

        `system` comes before them; `template` is not applied. Only with `chat`.

        Raises:
            ValueError: the chat template cannot show them.
        """
        system = [] if self.system is None else [self.system]
        shown = [*({"role": "system", "content": s} for s in system), *messages]
        roles = [message["role"] for message in shown]
        form = ChatForm.of(tokenizer, roles, variables=self.template_kwargs)
        return form.render(shown, tokenizer)

    def _check_no_history(self, problem: Problem) -> None:
        if problem.history:
            raise ValueError(
                f"`prompt_template` (chat {self.chat}) must use the chat template for "
                f"problem `{problem.problem_id}`; because {len(problem.history)} "
                "messages stand before it, which plain text cannot tell apart. Set "
                'prompt_template={"chat": True}.'
            )

    def _check_one_system(self, problem: Problem) -> None:
        if any(message["role"] == "system" for message in problem.history):
            raise ValueError(
                f"`prompt_template` (system {self.system!r:.60}) must have no system "
                f"message for problem `{problem.problem_id}`; because that one has its "
                'own. Set prompt_template={"chat": True}.'
            )


_BOXED_INSTRUCTION = (
    r"Please reason step by step, and put your final answer within \boxed{}."
)
# Of PURE's training and evaluation, which do without a chat template.
_PAPER_PROMPT = (
    "{problem}\n\nPlease reason step by step with steps separated by "
    '"\n\n", and put your final answer within \\boxed{{}}.'
)
TEMPLATES: dict[str, PromptTemplate] = {
    "plain": PromptTemplate(),
    "pure_paper": PromptTemplate(_PAPER_PROMPT),
    # Of Qwen2.5-Math's instructed models and their evaluation.
    "qwen2_5_math": PromptTemplate(chat=True, system=_BOXED_INSTRUCTION),
}
_OLD_NAMES = {"pure": "qwen2_5_math"}
TEMPLATES |= {old: TEMPLATES[new] for old, new in _OLD_NAMES.items()}


def make_template(
    template: str | Mapping[str, Any] | PromptTemplate,
) -> PromptTemplate:
    """Makes a template of what a configuration file can hold.

    Args:
        template: a name ("plain", "pure_paper", "qwen2_5_math"), a text with
            `{problem}`, the fields of `PromptTemplate` by name, or a template.

    Raises:
        ValueError: no such name, or the template is not valid.
        TypeError: a field that `PromptTemplate` does not have.
    """
    if isinstance(template, PromptTemplate):
        return template
    if isinstance(template, Mapping):
        known = [f.name for f in fields(PromptTemplate)]
        if unknown := sorted(set(template).difference(known)):
            raise TypeError(
                f"`prompt_template` has unknown fields {unknown}; it may hold {known}"
            )
        return PromptTemplate(**template)
    if new := _OLD_NAMES.get(template):
        warnings.warn(
            f'The prompt template "{template}" is called "{new}": it is the chat '
            'prompt of Qwen2.5-Math. The prompt of PURE\'s paper is "pure_paper".',
            DeprecationWarning,
            stacklevel=1,
        )
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{" in template:
        return PromptTemplate(template)
    names = " or ".join(sorted(TEMPLATES.keys() - _OLD_NAMES))
    raise ValueError(
        f"`template` ({template!r}) must be a known name or a text with {{problem}}; "
        f"because the problem has to go somewhere. Set it to {names}."
    )


def drop_long_prompts(
    source: ProblemSource,
    encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]],
    max_prompt_tokens: int,
) -> tuple[ListProblems, int]:
    """Leaves out the problems whose prompts are too long.

    Args:
        source: the problems; all of them are read.
        encode: from N problem texts to N lists of token ids, such as
            `functools.partial(template.encode_batch, tokenizer=tokenizer)`. Where
            messages stand before a problem, it is given the problem.
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
        rows = encode([p if p.history else p.prompt for p in batch])
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
