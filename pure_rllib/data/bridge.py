"""What stands between two turns of the policy: an observation in the prompt's form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pure_rllib.data.chat import Text
from pure_rllib.data.encoding import encode_plain, encode_shielded, marker_ids, shield
from pure_rllib.data.prompts import PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT_MARK = " [cut]"
"""Behind an observation that was too long."""

_MOST_KNOWN = 4096
_ASKED = {"role": "user", "content": "problem#1"}
_REPLIED = {"role": "assistant", "content": "reply#1"}


@dataclass(frozen=True, slots=True)
class Bridge:
    """Writes what follows a turn of the policy, up to its next one.

    Only this is ever encoded: a turn's own ids stay as they were sampled. Without a
    chat template it is the observation alone.

    Attributes:
        template: of the prompt, which turns follow.
        tokenizer: the policy's.
        end_id: the token that ends a turn in the chat template; None without one.
        head: what the chat template shows up to there, of any conversation.
    """

    template: PromptTemplate
    tokenizer: "PreTrainedTokenizerBase"
    end_id: int | None = None
    head: str = ""
    _known: dict[str, list[int]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase"
    ) -> "Bridge":
        """Makes sure that turns can be appended to each other.

        Raises:
            ValueError: the chat template shows earlier turns otherwise once another one
                follows, or ends them with no token of their own.
        """
        if not template.chat:
            return cls(template, tokenizer)
        turn = template.conversation([_ASKED], tokenizer) + _REPLIED["content"]
        replied = template.conversation([_ASKED, _REPLIED, _ASKED], tokenizer)
        behind = replied.removeprefix(turn)
        markers = marker_ids(tokenizer)
        ends = [marker for marker in markers if behind.startswith(marker)]
        if behind == replied or not ends:
            raise _rewrites(tokenizer)
        end = max(ends, key=len)
        return cls(template, tokenizer, markers[end], turn + end)

    def encode(self, observation: Text) -> list[int]:
        """Returns the ids behind a turn's end; no text in them becomes a marker.

        Args:
            observation: a text, which the chat template shows as the user's, or
                messages with `role` and `content`.

        Raises:
            ValueError: there is no chat template for messages, or it does not show them
                behind what was written before.
        """
        if not isinstance(observation, str):
            return self._encode(observation)
        # The responses of a group hear much the same.
        if observation not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[observation] = self._encode(observation)
        return self._known[observation]

    def _encode(self, observation: Text) -> list[int]:
        if self.end_id is None:
            return self._encode_plain(observation)
        if isinstance(observation, str):
            observation = [{"role": "user", "content": observation}]
        messages = [
            {**message, "content": shield(self.tokenizer, message["content"])}
            for message in observation
        ]
        whole = self.template.conversation(
            [_ASKED, _REPLIED, *messages], self.tokenizer
        )
        if not whole.startswith(self.head):
            raise _rewrites(self.tokenizer)
        return encode_shielded(self.tokenizer, [whole.removeprefix(self.head)])[0]

    def texts(self, turns: Sequence[Sequence[int]]) -> list[str]:
        """Returns what turns of the policy say, without special tokens.

        Args:
            turns: ids of each; as in a group many are alike, each is decoded once.
        """
        known = {
            ids: self.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for ids in set(map(tuple, turns))
        }
        return [known[tuple(ids)] for ids in turns]

    def shortened(self, observation: Text, max_tokens: int) -> Text:
        """Returns an observation whose texts have at most so many tokens, then a mark.

        Args:
            observation: see `encode`.
            max_tokens: of each text, >= 1.
        """
        if not isinstance(observation, str):
            return [
                {**message, "content": self._shortened(message["content"], max_tokens)}
                for message in observation
            ]
        return self._shortened(observation, max_tokens)

    def _shortened(self, text: str, max_tokens: int) -> str:
        ids = encode_plain(self.tokenizer, text)
        if len(ids) <= max_tokens:
            return text
        kept: str = self.tokenizer.decode(
            ids[:max_tokens], clean_up_tokenization_spaces=False
        )
        return f"{kept}{CUT_MARK}"

    def _encode_plain(self, observation: Text) -> list[int]:
        if not isinstance(observation, str):
            raise ValueError(
                f"`prompt_template` ({self.template.template!r:.60}) must use the chat "
                "template, because the environment says messages with roles, which "
                'plain text cannot tell apart. Set `prompt_template={"chat": True}`.'
            )
        if not observation:
            return []
        return encode_shielded(self.tokenizer, [shield(self.tokenizer, observation)])[0]


def _rewrites(tokenizer: "PreTrainedTokenizerBase") -> ValueError:
    return ValueError(
        f"The chat template of the tokenizer {tokenizer.name_or_path!r} must show "
        "earlier turns as they were written, each with a token of its own behind it, "
        "because turns are appended and never encoded again. Set `prompt_template` to "
        "one without `chat`, or give the tokenizer another chat template."
    )
