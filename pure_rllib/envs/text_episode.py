"""One response over several turns: whose tokens are where, and what they earned."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pure_rllib.data.bridge import Bridge
from pure_rllib.envs.text_env import StepResult
from pure_rllib.envs.vector import BLANK_RESPONSE_REWARD, JudgedResponse
from pure_rllib.rewards.base import Outcome, Verdict

TurnRewards = Literal["outcome", "process"]

Observation = tuple[int, np.ndarray]
"""Ids of the environment, and before which of the policy's own tokens they stand."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What a response holds beside the policy's own tokens.

    Attributes:
        number: turns of the policy, >= 1.
        observations: the environment's ids, where they stand.
        is_cut: whether the last turn was cut by a budget.
        num_cut_observations: observations over `max_observation_tokens`.
    """

    number: int = 1
    observations: tuple[Observation, ...] = ()
    is_cut: bool = False
    num_cut_observations: int = 0

    @property
    def num_observation_tokens(self) -> int:
        """Tokens of the environment."""
        return sum(len(ids) for _, ids in self.observations)


@dataclass(frozen=True, slots=True)
class TurnRules:
    """How episodes of turns go.

    Attributes:
        bridge: encodes observations.
        max_turns: turns of the policy, >= 1.
        max_turn_tokens: of one turn; None: as many as are left.
        max_observation_tokens: of one text of the environment; None: as many as it has.
        turn_rewards: see `TextTokenEnv`.
    """

    bridge: Bridge
    max_turns: int
    max_turn_tokens: int | None
    max_observation_tokens: int | None
    turn_rewards: TurnRewards


@dataclass(slots=True)
class TextEpisode:
    """The turns of one response. T own tokens: those that the policy sampled.

    A response never ends in the environment's tokens: an observation that leaves no
    room for a turn is not appended, and the episode is truncated.

    Attributes:
        rules: how it goes.
        max_tokens: of turns and observations together.
        own_ids: T ids.
        logps: T log-probabilities; empty where nobody asked for them.
        observations: the environment's ids, where they stand.
        turn_ends: for each turn the number of own tokens up to its end.
        rewards: for each turn its reward; None where it was not judged.
        info: the environment's last one.
        terminated: whether the environment ended the episode.
        truncated: whether it ended for lack of turns or tokens.
        is_cut: whether the last turn was cut, which the environment never sees.
        num_cut_observations: observations over `max_observation_tokens`.
    """

    rules: TurnRules
    max_tokens: int
    own_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    terminated: bool = False
    truncated: bool = False
    is_cut: bool = False
    num_cut_observations: int = 0

    @property
    def is_over(self) -> bool:
        """Whether no turn follows."""
        return self.terminated or self.truncated

    def all_ids(self) -> list[int]:
        """Returns own and environment's ids in their order."""
        own = np.asarray(self.own_ids, dtype=np.int64)
        ids: list[int] = interleave(own, self.observations).tolist()
        return ids

    @property
    def num_tokens(self) -> int:
        """Own and environment's tokens."""
        return len(self.own_ids) + sum(len(ids) for _, ids in self.observations)

    @property
    def written(self) -> int:
        """Tokens that the present turn has."""
        return len(self.own_ids) - (self.turn_ends[-1] if self.turn_ends else 0)

    @property
    def turn_budget(self) -> int:
        """Tokens that the present turn may have in all."""
        left = self.max_tokens - self.num_tokens + self.written
        most = self.rules.max_turn_tokens
        return left if most is None else min(most, left)

    def end_turn(self, is_ended: bool) -> list[int] | None:
        """Ends the turn of the ids that `own_ids` now holds.

        Args:
            is_ended: whether with an end-of-sequence token or a stop string. A turn
                that was cut is never shown to the environment, and ends the episode.

        Returns:
            The turn's ids, whose text is for the environment, or None.
        """
        start = self.turn_ends[-1] if self.turn_ends else 0
        self.turn_ends.append(len(self.own_ids))
        if is_ended:
            return self.own_ids[start:]
        self.truncated = self.is_cut = True
        # Else not to end a turn would pay, wherever turns earn less than nothing.
        self.rewards.append(BLANK_RESPONSE_REWARD)
        return None

    def take(self, result: StepResult) -> None:
        """Takes over what the environment answered to the last turn.

        Raises:
            ValueError: a process reward is out of [-1, 1].
        """
        observation, reward, terminated, truncated, self.info = result
        is_process = self.rules.turn_rewards == "process"
        if is_process and reward is not None and not -1.0 <= reward <= 1.0:
            raise ValueError(
                f"A turn's reward ({reward}) must be in [-1, 1], because it is a "
                "process reward. Rescale it in your environment, or set "
                '`env_config={"turn_rewards": "outcome"}`.'
            )
        self.rewards.append(reward)
        self.terminated = bool(terminated)
        self.truncated = not self.terminated and (
            bool(truncated) or len(self.turn_ends) >= self.rules.max_turns
        )
        if self.is_over:
            return
        most = self.rules.max_observation_tokens
        if most is not None:
            whole = observation
            observation = self.rules.bridge.shortened(whole, most)
            self.num_cut_observations += observation != whole
        ids = self.rules.bridge.encode(observation)
        end_id = self.rules.bridge.end_id
        if end_id is not None and self.own_ids[-1] != end_id:
            # The policy ended its turn otherwise, as with a stop string.
            ids = [end_id, *ids]
        if self.num_tokens + len(ids) >= self.max_tokens:
            self.truncated = True
        elif ids:
            self.observations.append((len(self.own_ids), np.asarray(ids, np.int64)))

    def turns(self) -> Turns:
        """Returns how many turns there were, and what stands between them."""
        return Turns(
            len(self.turn_ends),
            tuple(self.observations),
            self.is_cut,
            self.num_cut_observations,
        )

    def judged(self, score: bool = True, text: str | None = None) -> JudgedResponse:
        """Returns steps and rewards, in own tokens.

        Args:
            score: False leaves the process rewards out.
            text: of own tokens, where it is known.
        """
        is_process = score and self.rules.turn_rewards == "process"
        steps = list(zip(self.turn_ends, self.rewards, strict=True))
        # Tokens of a turn that was not judged belong to the next one that was.
        known = [(e, r) for e, r in steps if is_process and r is not None]
        ends, rewards = zip(*(known or [(e, 0.0) for e, _ in steps]), strict=True)
        if text is None:
            (text,) = self.rules.bridge.texts([self.own_ids])
        return JudgedResponse(
            text=text,
            step_spans=np.array([*zip((0, *ends), ends, strict=False)]),
            step_rewards=np.asarray(rewards, dtype=np.float32),
            has_visible=bool(text.strip()),
            verdict=self.verdict(),
            is_scored=bool(known),
        )

    def verdict(self) -> Verdict | None:
        """Returns what the whole episode was worth, if the environment says so.

        Raises:
            ValueError: it says something out of [0, 1].
        """
        reward = self.info.get("verifiable_reward")
        if self.rules.turn_rewards == "outcome":
            if reward is None:
                turns = self.rewards[:-1] if self.is_cut else self.rewards
                # Parts of one must not make a little more than one.
                reward = round(sum(r for r in turns if r is not None), 9)
        elif reward is None and self.is_cut:
            reward = 0.0
        if reward is None:
            return None
        if not 0.0 <= reward <= 1.0:
            raise ValueError(
                f"The verifiable reward of an episode ({reward}) must be in [0, 1]; "
                "without one in the last info it is the sum of the turns' rewards. "
                "Rescale the rewards of your environment, or let it give "
                "`verifiable_reward`."
            )
        reward = float(reward)
        by_reward: Outcome = "correct" if reward > 0.5 else "incorrect"
        outcome, parts = self.info.get("outcome"), self.info.get("parts")
        return Verdict(outcome or by_reward, score=reward, parts=parts or {})


def interleave(own: np.ndarray, observations: Sequence[Observation]) -> np.ndarray:
    """Returns own ids with the environment's ids where they stand.

    Args:
        own: `[T]` ids.
        observations: rising.
    """
    if not observations:
        return own
    pieces, start = [], 0
    for before, ids in observations:
        pieces += [own[start:before], ids]
        start = before
    return np.concatenate([*pieces, own[start:]])


def own_positions(num_own: int, observations: Sequence[Observation]) -> np.ndarray:
    """Returns `[T]` int64: where own tokens stand among all of the response's."""
    positions = np.arange(num_own, dtype=np.int64)
    for before, ids in observations:
        positions[before:] += len(ids)
    return positions
