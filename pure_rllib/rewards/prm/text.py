"""Rows of a reward model that reads text: another tokenizer, or a prompt of its own.

L columns, S steps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pure_rllib.credit.steps import own_bos_id
from pure_rllib.rewards.base import ScoringRequest
from pure_rllib.rewards.prm.formats import PRMFormat
from pure_rllib.rewards.prm.inputs import PRMRow


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
    """

    def __init__(
        self, chosen: PRMFormat, tokenizer: Any, separator_id: int, vocab_size: int
    ):
        assert chosen.prompt != "policy", "a policy's ids mean nothing here"
        self.format = chosen
        self.tokenizer = tokenizer
        self.separator_id = separator_id
        self.vocab_size = vocab_size
        self._bos = own_bos_id(tokenizer)

    def rows(self, requests: Sequence[ScoringRequest]) -> list[PRMRow]:
        """Builds one row per request; each has as many score positions as steps."""
        prompts: dict[str, list[int]] = {}
        rows = []
        for request in requests:
            if self.format.prompt == "chat" and request.prompt not in prompts:
                prompts[request.prompt] = self._chat_prompt(request.prompt)
            rows.append(self._row(request, prompts.get(request.prompt)))
        return rows

    def _row(self, request: ScoringRequest, chat_prompt: list[int] | None) -> PRMRow:
        num_steps = len(request.step_spans)
        assert len(request.step_texts) == num_steps, (
            f"{len(request.step_texts)} texts for {num_steps} steps"
        )
        ids = list(chat_prompt or [])
        positions = []
        for number, text in enumerate(request.step_texts, 1):
            shown = self.format.step_text(number, text)
            if number > 1:
                step = self._after_separator(self.format.between + shown)
            elif chat_prompt is None:
                # As one text: that is how such models were trained.
                whole = request.prompt + self.format.prompt_end + shown
                ids += [] if self._bos is None else [self._bos]
                step = plain_ids(self.tokenizer, whole)
            else:
                step = plain_ids(self.tokenizer, shown)
            ids += [i for i in step if i < self.vocab_size]
            positions.append(len(ids))
            ids.append(self.separator_id)
        return PRMRow(np.array(ids, np.int64), np.array(positions, np.int64))

    def _after_separator(self, text: str) -> list[int]:
        """The ids of a text that follows a separator."""
        # Some tokenizers put a space before every text; behind another one they don't.
        joined = plain_ids(self.tokenizer, self.format.separator + text)
        if joined[:1] == [self.separator_id]:
            return joined[1:]
        return plain_ids(self.tokenizer, text)

    def _chat_prompt(self, problem: str) -> list[int]:
        return chat_ids(self.tokenizer, problem, self.format.system)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Encodes a text in which nothing is taken for a special token."""
    return list(
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
    )


def chat_ids(tokenizer: Any, message: str, system: str | None = None) -> list[int]:
    """Encodes a user's message in the tokenizer's chat template, up to the answer.

    The message's own text never becomes a special token.

    Args:
        tokenizer: with a chat template.
        message: what the user says.
        system: the system message; None leaves it to the template.
    """
    # A text that no template changes and that no message holds.
    place = "\ufdd0message\ufdd1"
    messages = [{"role": "user", "content": place}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    before, found, after = rendered.partition(place)
    assert found, f"The chat template dropped the user's message: {rendered!r}"
    before_ids, after_ids = (
        list(tokenizer(part, add_special_tokens=False)["input_ids"])
        for part in (before, after)
    )
    return [*before_ids, *plain_ids(tokenizer, message), *after_ids]
