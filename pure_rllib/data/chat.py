"""How messages are given to a tokenizer's chat template, found out by trying."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]

Text = str | Messages
"""What is said to the policy: the user's words, or messages with roles."""

_WAY_OUT = (
    'Set `prompt_template` to "plain" or another one without `chat`, or give the '
    "tokenizer another chat template."
)
_forms: "WeakKeyDictionary[Any, dict[str, ChatForm]]" = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class ChatForm:
    """A form of messages that a chat template shows whole.

    Attributes:
        has_blocks: content is a list of blocks, as templates of vision models read it.
        merges_system: the system message stands before the first user's own text, for
            templates that refuse or drop the system role.
        variables: passed to the template, such as `enable_thinking`.
    """

    has_blocks: bool
    merges_system: bool
    variables: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        roles: Sequence[str],
        *,
        variables: Mapping[str, Any] | None = None,
        may_merge: bool = True,
        way_out: str = _WAY_OUT,
    ) -> "ChatForm":
        """Finds the first form in which the messages of some roles all arrive.

        Args:
            tokenizer: with a chat template.
            roles: of the messages, in their order; the last one is the user's.
            variables: passed to the template.
            may_merge: whether a system message may be put into the user's; not for
                models that were trained to judge one form of prompt.
            way_out: ends the error.

        Raises:
            ValueError: there is no chat template, none of the forms arrives, or the
                template has no such variable.
        """
        variables = variables or {}
        key = json.dumps(
            [tokenizer.chat_template, list(roles), variables, may_merge],
            sort_keys=True,
            default=str,
        )
        known = _forms.setdefault(tokenizer, {})
        if key not in known:
            _check_template(tokenizer, variables)
            merges = (False, True) if may_merge and roles[0] == "system" else (False,)
            forms = [cls(b, m, variables) for m in merges for b in (False, True)]
            known[key] = _first_that_arrives(forms, roles, tokenizer, way_out)
        return known[key]

    def render(self, messages: Messages, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Writes messages as the template does, up to the assistant's turn.

        Args:
            messages: with `role` and, as text, `content`; a system message comes first.
            tokenizer: the one that the form was found for.

        Raises:
            ValueError: the template refuses them.
        """
        try:
            return self._rendered(messages, tokenizer)
        except _ERRORS as error:
            raise ValueError(
                f"The messages of a problem (roles {_listed(messages)}) must fit the "
                f"chat template of the tokenizer {tokenizer.name_or_path!r}; because "
                f"it says: {error}. Change the rows, or: {_WAY_OUT}"
            ) from error

    def _rendered(
        self,
        messages: Messages,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        shown = [dict(message) for message in messages]
        if self.merges_system and shown[0]["role"] == "system":
            system = shown.pop(0)["content"]
            shown[0]["content"] = f"{system}\n\n{shown[0]['content']}"
        if self.has_blocks:
            for message in shown:
                message["content"] = [{"type": "text", "text": message["content"]}]
        rendered = tokenizer.apply_chat_template(
            shown,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self.variables,
        )
        assert isinstance(rendered, str), f"Rendered to {type(rendered)}, not text."
        return rendered


# What `raise_exception`, a message of an unexpected form, or a variable that is one of
# the call's own arguments raise in a template.
_ERRORS = (TemplateError, TypeError)


def _check_template(
    tokenizer: "PreTrainedTokenizerBase", variables: Mapping[str, Any]
) -> None:
    if not tokenizer.chat_template:
        raise ValueError(
            "`chat` (True) must be off for the tokenizer of "
            f"{tokenizer.name_or_path!r}; because it has no chat template. Set "
            'chat=False, or the template "plain".'
        )
    text = tokenizer.get_chat_template()
    for name in variables:
        if name not in text:
            raise ValueError(
                f"`template_kwargs` ({name!r}) must be a variable of the chat template "
                f"of {tokenizer.name_or_path!r}; because it would have no effect. "
                "Leave it out."
            )


def _first_that_arrives(
    forms: Sequence[ChatForm],
    roles: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    way_out: str,
) -> ChatForm:
    # With a backslash: where a list is printed as Python writes it, it is doubled.
    messages = [
        {"role": r, "content": rf"message{i}\marker"} for i, r in enumerate(roles)
    ]
    reason = ""
    for form in forms:
        try:
            rendered = form._rendered(messages, tokenizer)
        except _ERRORS as error:
            reason = reason or f"it says: {error}"
            continue
        dropped = [m for m in messages if m["content"] not in rendered]
        if not dropped:
            _say_what_is_unusual(form, messages, rendered, tokenizer)
            return form
        reason = reason or f"it drops that of the {_listed(dropped)}"
    shown = f"messages of {_listed(messages)}" if len(messages) > 1 else "a problem"
    raise ValueError(
        f"The chat template of the tokenizer {tokenizer.name_or_path!r} must show "
        f"{shown}; because the model would not see all; {reason}. {way_out}"
    )


def _listed(messages: Messages) -> str:
    return ", ".join(message["role"] for message in messages)


def _say_what_is_unusual(
    form: ChatForm,
    messages: Messages,
    rendered: str,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    name = tokenizer.name_or_path
    if form.merges_system:
        warnings.warn(
            f"The chat template of {name!r} has no system message: it is put "
            "before the user's text.",
            stacklevel=2,
        )
    if rendered == form._rendered(messages, tokenizer, add_generation_prompt=False):
        warnings.warn(
            f"The chat template of {name!r} has no generation prompt: the model "
            "goes on behind the mark that ends the user's message. Unless it was "
            "trained so, give the tokenizer a chat template that reads "
            "`add_generation_prompt`.",
            stacklevel=2,
        )
