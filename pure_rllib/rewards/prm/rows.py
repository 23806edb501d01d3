r"""What a process reward model reads: the steps, each followed by a separator id.

B rows, P prompt tokens, T response tokens, S steps, L columns. Separators are put in as
ids, never as text: tokenizing a full stop and a newline again could give another token.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from pure_rllib.credit.steps import StepSplitter, own_bos_id
from pure_rllib.data.chat import ChatForm
from pure_rllib.data.encoding import encode_plain, encode_shielded, shield
from pure_rllib.data.prompts import PromptTemplate, make_template
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.formats import PRMFormat

logger = logging.getLogger(__name__)

InputFormat = Literal["pure_rllib", "pure_openrlhf", "pure_verl"]
INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)


@dataclass(frozen=True, slots=True)
class PRMRow:
    """One response as a process reward model reads it, without padding.

    Attributes:
        input_ids: `[L]` int64.
        score_positions: `[S]` int64, increasing columns whose logits are the steps'
            scores.
    """

    input_ids: np.ndarray
    score_positions: np.ndarray


class PRMInputBuilder:
    r"""Turns responses and their step spans into rows.

    In our own format a step is shown as it reads: special tokens and the white space
    around it are left out, a token such as `.\n\n` is replaced by the ids of its
    visible part, and the separator follows. The published formats (`make_experience` of
    PURE's main branch, `_build_inputs_for_prm` of its verl branch) replace the last
    token of each step by the separator, so the full stop is lost, and so is the last
    token of a response that was cut by its budget.

    Ids that the tokenizer or the reward model does not know have no text and no
    embedding: they are left out of the row, wherever they stand.

    Example (P is the prompt, | the separator)::

        response    a  b  .\n\n  c  EOS      spans [0, 3) [3, 5)
        pure_rllib  P  a  b  .  |  c  |      score positions 4, 6
        published   P  a  b  |  c  |         score positions 3, 5

    Args:
        tokenizer: of the policy and the reward model.
        separator_id: the id that follows each step.
        input_format: `pure_rllib`, `pure_openrlhf` or `pure_verl`; the last two differ
            in their padding only, so they give the same rows here.
        vocab_size: ids that the reward model has embeddings for; None: as many as the
            tokenizer has.

    Raises:
        ValueError: an unknown format.
    """

    def __init__(
        self,
        tokenizer: Any,
        separator_id: int,
        input_format: InputFormat = "pure_rllib",
        vocab_size: int | None = None,
    ):
        if input_format not in INPUT_FORMATS:
            raise ValueError(
                f"`input_format` ({input_format!r}) must be one of {INPUT_FORMATS} "
                "because the reward model was trained on one of them. Set it to "
                "'pure_rllib'."
            )
        self.tokenizer = tokenizer
        self.separator_id = separator_id
        self.input_format = input_format
        is_visible = StepSplitter.from_tokenizer(tokenizer).is_visible
        self._is_visible = is_visible[:vocab_size]
        added = tokenizer.added_tokens_decoder
        self._special_ids = np.array([i for i, t in added.items() if t.special], int)
        # Filled on first use: most of a vocabulary is never sampled.
        self._visible_parts: dict[int, list[int]] = {}

    def rows(self, requests: Sequence[ScoringRequest]) -> list[PRMRow]:
        """Builds one row per request; each has as many score positions as steps."""
        return [self.row(r.prompt_ids, r.response_ids, r.step_spans) for r in requests]

    def row(
        self,
        prompt_ids: Sequence[int] | np.ndarray,
        response_ids: Sequence[int] | np.ndarray,
        step_spans: np.ndarray,
    ) -> PRMRow:
        """Builds one row.

        Args:
            prompt_ids: `[P]` ids that the policy was given; shown as they are, but for
                unknown ones.
            response_ids: `[T]` sampled ids.
            step_spans: `[S, 2]` half-open ranges of the steps in the response.

        Returns:
            The row; it has S score positions.
        """
        tokens = np.asarray(response_ids, dtype=np.int64)
        ids = self._known(np.asarray(prompt_ids, dtype=np.int64)).tolist()
        positions = []
        for start, end in np.asarray(step_spans, dtype=np.int64).tolist():
            if self.input_format == "pure_rllib":
                ids.extend(self.step_ids(tokens[start:end]))
            else:
                ids.extend(self._known(tokens[start : end - 1]).tolist())
            positions.append(len(ids))
            ids.append(self.separator_id)
        return PRMRow(
            np.asarray(ids, dtype=np.int64), np.asarray(positions, dtype=np.int64)
        )

    def step_ids(self, tokens: Sequence[int] | np.ndarray) -> list[int]:
        """The visible part of one step in our format.

        Args:
            tokens: the step's ids, its separator or EOS included.

        Returns:
            Ids from the first to the last visible token, without special tokens and
            newlines at the end.
        """
        tokens = self._known(np.asarray(tokens, dtype=np.int64))
        tokens = tokens[~np.isin(tokens, self._special_ids)]
        places = np.flatnonzero(self._is_visible[tokens])
        if len(places) == 0:
            return []
        first, last = int(places[0]), int(places[-1])
        return [*tokens[first:last].tolist(), *self._visible_part(int(tokens[last]))]

    def _known(self, tokens: np.ndarray) -> np.ndarray:
        # A policy may have more embeddings than tokens, and may sample all of them.
        return tokens[tokens < len(self._is_visible)]

    def _visible_part(self, token: int) -> list[int]:
        """The ids of a token's text without the newlines at its end."""
        if token not in self._visible_parts:
            text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            visible = text.rstrip()
            # A token that holds part of a character does not survive decoding, so
            # tokens without newlines are never encoded again.
            self._visible_parts[token] = (
                encode_behind(self.tokenizer, "\n", visible)
                if "\n" in text[len(visible) :]
                else [token]
            )
        return self._visible_parts[token]


class PRMTextBuilder:
    r"""Turns the texts of steps into rows, in a reward model's own tokens.

    The steps stay those of the policy: step k of the request is encoded by itself and
    followed by one separator id, whose column is the k-th score position. So there is
    one score per step of the policy's spans whatever the two tokenizers do, and no
    separator is ever found by searching. A step's text is what the request says: white
    space at both ends and special tokens left out. What a response says never becomes
    a special token of the reward model, and ids for which the model has no embedding
    are left out.

    Example (`math_shepherd`)::

        How much is 2+3? Step 1: 2+3=5 ки\nStep 2: So 5. ки

    Args:
        chosen: the format; its "policy" prompt is not possible here.
        tokenizer: the reward model's.
        separator_id: the id that follows each step.
        vocab_size: ids that the reward model has embeddings for.
        prompt_template: makes the prompt in place of the format's own.

    Raises:
        ValueError: the reward model's chat template refuses or drops a message.
    """

    def __init__(
        self,
        chosen: PRMFormat,
        tokenizer: Any,
        separator_id: int,
        vocab_size: int,
        prompt_template: PromptTemplate | None = None,
    ):
        assert chosen.prompt != "policy", "a policy's ids mean nothing here"
        self.format = chosen
        self.tokenizer = tokenizer
        self.separator_id = separator_id
        self.vocab_size = vocab_size
        self._template = prompt_template
        self._bos = own_bos_id(tokenizer)
        if prompt_template is not None:
            prompt_template.check(tokenizer)
        elif chosen.prompt == "chat":
            check_chat(tokenizer, chosen.system)

    def rows(self, requests: Sequence[ScoringRequest]) -> list[PRMRow]:
        """Builds one row per request; each has as many score positions as steps."""
        return [self._row(request) for request in requests]

    def _row(self, request: ScoringRequest) -> PRMRow:
        num_steps = len(request.step_spans)
        assert len(request.step_texts) == num_steps, (
            f"{len(request.step_texts)} texts for {num_steps} steps"
        )
        ids: list[int] = []
        positions = []
        for number, text in enumerate(request.step_texts, 1):
            shown = self.format.step_text(number, shield(self.tokenizer, text))
            if number > 1:
                step = self._after_separator(self.format.between + shown)
            elif self._template is not None:
                # As the policy's prompt and steps: one after the other.
                ids = self._template.encode(request.prompt, self.tokenizer)
                step = self._after_separator(shown)
            else:
                step = self._from_the_start(self._prompt(request.prompt) + shown)
            ids += [i for i in step if i < self.vocab_size]
            positions.append(len(ids))
            ids.append(self.separator_id)
        return PRMRow(np.array(ids, np.int64), np.array(positions, np.int64))

    def _prompt(self, problem: str) -> str:
        problem = shield(self.tokenizer, problem)
        if self.format.prompt == "chat":
            return render_chat(self.tokenizer, problem, self.format.system)
        return problem + self.format.prompt_end

    def _from_the_start(self, text: str) -> list[int]:
        """The ids of prompt and first step, as one text: so such models are trained."""
        (ids,) = encode_shielded(self.tokenizer, [text])
        if self._bos is None or ids[:1] == [self._bos]:
            return ids
        return [self._bos, *ids]

    def _after_separator(self, text: str) -> list[int]:
        """The ids of a text that follows a separator."""
        return encode_behind(self.tokenizer, self.format.separator, text)


def encode_behind(tokenizer: Any, before: str, text: str) -> list[int]:
    """The ids of a text with another text before it.

    Some tokenizers put a space before every text; behind another one they don't.
    """
    context, joined, alone = encode_shielded(tokenizer, [before, before + text, text])
    size = len(context)
    return joined[size:] if joined[:size] == context else alone


def make_builder(
    chosen: PRMFormat,
    tokenizer: Any,
    *,
    separator_id: int,
    policy_tokenizer: Any,
    input_format: InputFormat,
    retokenize: bool,
    vocab_size: int,
    prompt_template: PromptTemplate | Mapping[str, Any] | str | None = None,
) -> PRMInputBuilder | PRMTextBuilder:
    """Decides between the policy's ids and the texts of the steps.

    Args:
        chosen: the format.
        tokenizer: the reward model's.
        separator_id: the id that follows each step.
        policy_tokenizer: None if the two are the same.
        input_format: how rows of ids are built.
        retokenize: whether texts may be encoded anew.
        vocab_size: ids that the reward model has embeddings for.
        prompt_template: the policy's, if known: a format that shows the policy's prompt
            shows the same prompt, in the reward model's tokens, where ids differ.

    Raises:
        ValueError: the policy's ids are needed and mean something else here.
    """
    needs_ids = input_format != "pure_rllib"
    template = None
    if chosen.prompt == "policy":
        difference = policy_tokenizer and differing_tokens(policy_tokenizer, tokenizer)
        if not difference:
            return PRMInputBuilder(tokenizer, separator_id, input_format, vocab_size)
        if needs_ids or not retokenize:
            raise ValueError(
                f"The process reward model's vocabulary must be the policy's, because "
                f"with `input_format` {input_format!r} and `retokenize` {retokenize} "
                f"sampled ids are passed on as they are; {difference}. Use models of "
                'one family, or input_format="pure_rllib" and retokenize=True.'
            )
        logger.warning("Steps are encoded anew for the PRM: %s.", difference)
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        chosen = replace(chosen, prompt="chat" if has_chat else "text")
        template = None if prompt_template is None else make_template(prompt_template)
        if template is not None and template.chat and not has_chat:
            template = PromptTemplate(template.template)
    if needs_ids:
        raise ValueError(
            f"`input_format` ({input_format!r}) must be 'pure_rllib' with `prm_format` "
            f"{chosen.name!r}, because the published formats replace ids of the policy "
            "and this one shows text. Leave `input_format` out."
        )
    return PRMTextBuilder(chosen, tokenizer, separator_id, vocab_size, template)


def differing_tokens(policy_tokenizer: Any, prm_tokenizer: Any) -> str | None:
    """Tells in which ids two vocabularies differ; None if each id means the same."""
    policy, prm = policy_tokenizer.get_vocab(), prm_tokenizer.get_vocab()
    if policy == prm:
        return None
    differing = sorted(
        set(policy.items()) ^ set(prm.items()), key=lambda item: (item[1], item[0])
    )
    tokens = list(dict.fromkeys(token for token, _ in differing))[:3]
    named = "; ".join(
        f"{token!r} is id {policy.get(token)} to the policy and {prm.get(token)} to "
        "the reward model"
        for token in tokens
    )
    return (
        f"the vocabularies of policy ({len(policy)} tokens) and reward model "
        f"({len(prm)} tokens) differ in {len(differing)} entries, first: {named}"
    )


plain_ids = encode_plain
"""What `encode_plain` is called where rows of steps are built."""


def chat_ids(tokenizer: Any, message: str, system: str | None = None) -> list[int]:
    """Encodes a user's message in the tokenizer's chat template, up to the answer.

    The message's own text never becomes a marker of the tokenizer.

    Args:
        tokenizer: with a chat template.
        message: what the user says.
        system: the system message; None leaves it to the template.

    Raises:
        ValueError: the template refuses a message.
    """
    text = render_chat(tokenizer, shield(tokenizer, message), system)
    return encode_shielded(tokenizer, [text])[0]


def render_chat(tokenizer: Any, message: str, system: str | None = None) -> str:
    """Renders a message as `chat_ids` encodes it; the arguments are the same."""
    messages = [{"role": "user", "content": message}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return _chat_form(tokenizer, system).render(messages, tokenizer)


def check_chat(tokenizer: Any, system: str | None = None) -> None:
    """Checks that a model's chat template shows what it is asked, if there is one.

    Raises:
        ValueError: it refuses or drops a message.
    """
    if getattr(tokenizer, "chat_template", None):
        _chat_form(tokenizer, system)


def _chat_form(tokenizer: Any, system: str | None) -> ChatForm:
    return ChatForm.of(
        tokenizer,
        ["user"] if system is None else ["system", "user"],
        may_merge=False,
        way_out=f"Set `system` ({system!r:.80}) to None if it is the system message, "
        'as in prm_format={"name": ..., "system": None}, or give it another template.',
    )


def question_ids(
    tokenizer: Any,
    template: str,
    fields: Mapping[str, str],
    system: str | None = None,
) -> list[int]:
    """Encodes a question to a language model, up to its answer.

    Args:
        tokenizer: the model's.
        template: text with `{name}` where a field goes; shown in the model's chat
            template, or, without one, as it is, with a newline behind.
        fields: texts by name; braces in them mean nothing.
        system: see `chat_ids`; without a chat template it has no effect.
    """
    # In one pass: a text that is put in is not looked through again.
    names = re.compile(r"\{(" + "|".join(fields) + r")\}")
    text = names.sub(lambda found: fields[found[1]], template)
    if getattr(tokenizer, "chat_template", None):
        return chat_ids(tokenizer, text, system)
    bos = own_bos_id(tokenizer)
    return [*([] if bos is None else [bos]), *plain_ids(tokenizer, text + "\n")]
