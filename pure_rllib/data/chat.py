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

# With a backslash: where a list is printed as Python writes it, it is doubled.
_SYSTEM, _PROBLEM = r"system\marker", r"problem\marker"
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
        *,
        has_system: bool,
        variables: Mapping[str, Any],
    ) -> "ChatForm":
        """Finds the first form in which a system message and a problem both arrive.

        Args:
            tokenizer: with a chat template.
            has_system: whether there are system messages.
            variables: passed to the template.

        Raises:
            ValueError: there is no chat template, none of the forms arrives, or the
                template has no such variable.
        """
        key = json.dumps(
            [tokenizer.chat_template, has_system, variables],
            sort_keys=True,
            default=str,
        )
        known = _forms.setdefault(tokenizer, {})
        if key not in known:
            known[key] = cls._find(tokenizer, has_system, variables)
        return known[key]

    @classmethod
    def _find(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        has_system: bool,
        variables: Mapping[str, Any],
    ) -> "ChatForm":
        _check_template(tokenizer, variables)
        messages = [{"role": "user", "content": _PROBLEM}]
        if has_system:
            messages.insert(0, {"role": "system", "content": _SYSTEM})
        forms = [
            cls(has_blocks, merges_system, variables)
            for merges_system in ((False, True) if has_system else (False,))
            for has_blocks in (False, True)
        ]
        reason = "it shows them in no form"
        for form in forms:
            try:
                rendered = form._rendered(messages, tokenizer)
            except _ERRORS as error:
                reason = f"it says: {error}"
                continue
            if all(message["content"] in rendered for message in messages):
                form._say_what_is_unusual(messages, rendered, tokenizer)
                return form
        shown = "a system message and a problem" if has_system else "a problem"
        raise ValueError(
            f"The chat template of the tokenizer {tokenizer.name_or_path!r} must show "
            f"{shown}; because the policy would not see it; {reason}. {_WAY_OUT}"
        )

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
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"The messages of a problem (roles {roles}) must fit the chat template "
                f"of the tokenizer {tokenizer.name_or_path!r}; because it says: "
                f"{error}. Change the rows, or: {_WAY_OUT}"
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

    def _say_what_is_unusual(
        self, messages: Messages, rendered: str, tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        name = tokenizer.name_or_path
        if self.merges_system:
            warnings.warn(
                f"The chat template of {name!r} has no system message: it is put "
                "before the user's text.",
                stacklevel=2,
            )
        if rendered == self._rendered(messages, tokenizer, add_generation_prompt=False):
            warnings.warn(
                f"The chat template of {name!r} has no generation prompt: the policy "
                "goes on behind the mark that ends the user's message. Unless it was "
                "trained so, give the tokenizer a chat template that reads "
                "`add_generation_prompt`.",
                stacklevel=2,
            )


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
