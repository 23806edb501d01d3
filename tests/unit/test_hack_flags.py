"""Flags of responses that game their rewards, caps on them, and their settings."""

from typing import Any

import numpy as np
import pytest

from pure_rllib.algorithms import PUREConfig
from pure_rllib.credit.steps import StepSplitter
from pure_rllib.credit.text_metrics import repetition
from pure_rllib.envs.vector import JudgedResponse
from pure_rllib.hacking.flags import (
    FLAGS,
    Flags,
    HackLimits,
    cap_rewards,
    flag_group,
    has_chatter,
    has_empty_step,
    has_text_after_answer,
    repeated_sentences,
)
from pure_rllib.rewards.base import Verdict
from pure_rllib.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
SPLITTER = StepSplitter.from_tokenizer(TOKENIZER)


def ids_of(text: str) -> np.ndarray:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return np.array([*ids, TOKENIZER.eos_token_id])


def flags(*texts: str, limits: HackLimits | None = None) -> list[frozenset[str]]:
    ids = [ids_of(text) for text in texts]
    found = flag_group(texts, ids, SPLITTER, limits or HackLimits())
    assert [f.repetition for f in found] == [repetition(text) for text in texts]
    return [f.names for f in found]


GOOD = "First we add two and three.\n\nThat makes five.\n\nSo \\boxed{5}."


def test_turns_are_steps_where_there_are_any() -> None:
    text = "4"
    for steps, names in ((1, {"one_step"}), (2, set())):
        (found,) = flag_group([text], [ids_of(text)], SPLITTER, HackLimits(), [steps])
        assert found.names == names


def test_an_ordinary_response_bears_no_flag() -> None:
    assert flags(GOOD, GOOD) == [frozenset(), frozenset()]


FLAGGED = [
    ("Two steps.\n\n\n\nMore.\n\n\\boxed{5}", {"empty_step"}),
    (" ", {"empty_step", "one_step", "short"}),
    ("So the answer to all of it is \\boxed{5}.", {"one_step"}),
    ("So.\n\n\\boxed{5}", {"short"}),
    ("now 0+2. " * 12 + "\n\n\\boxed{5}", {"repetition"}),
    (GOOD + "\n\nI double it to get ten.", {"after_answer"}),
    ("We add two and three.\n\nHappy Birthday, and thank you!", {"chatter"}),
]


@pytest.mark.parametrize(("text", "expected"), FLAGGED)
def test_each_flag_alone(text: str, expected: set[str]) -> None:
    assert flags(GOOD, text, GOOD)[1] == expected


def test_every_flag_is_tested_and_named() -> None:
    assert {name for _, names in FLAGGED for name in names} == set(FLAGS)
    assert len(FLAGS) == 6


def test_limits_move_the_flags() -> None:
    half = GOOD[: len(GOOD) // 2]
    assert "short" not in flags(GOOD, half, GOOD)[1]
    assert "short" in flags(GOOD, half, GOOD, limits=HackLimits(short=0.6))[1]


def test_a_separator_at_the_end_leaves_no_empty_step() -> None:
    assert not has_empty_step(ids_of("A.\n\nB.\n\n"), SPLITTER)
    assert has_empty_step(ids_of("\n\nA."), SPLITTER)


@pytest.mark.parametrize(
    ("text", "is_after"),
    [
        ("no box, much text", False),
        (r"so $\boxed{5}$.", False),
        (r"\[ \boxed{5} \]", False),
        (r"\boxed{1} and \boxed{2}.", False),
        (r"\boxed{1}, \boxed{2}", False),
        (r"\boxed{5} apples", True),
        (r"$\boxed{5}$ cm", True),
        ("\\boxed{5}\n\nnow 2+3", True),
        (r"\boxed{5} Thanks! \boxed{5}", True),
    ],
)
def test_text_after_the_answer(text: str, is_after: bool) -> None:
    assert has_text_after_answer(text) is is_after


@pytest.mark.parametrize(
    ("text", "is_chatter"),
    [
        ("Thank you.", True),
        ("THANKS", True),
        ("Thx!", True),
        ("Merry Christmas", True),
        ("You're welcome!", True),
        ("I hope this helps", True),
        ("Thanksgiving falls on a Thursday", False),
        ("We are done, as 2 + 2 = 4.", False),
    ],
)
def test_chatter(text: str, is_chatter: bool) -> None:
    assert has_chatter(text) is is_chatter


def test_repeated_sentences_by_hand() -> None:
    # Six sentences, two of them distinct.
    assert repeated_sentences("A b. C. a  B. c.\nA b.\n\nC.") == pytest.approx(4 / 6)
    assert repeated_sentences("A. A. A.") == 0.0


@pytest.mark.parametrize(
    ("names", "caps", "expected"),
    [
        (
            {"one_step", "short"},
            {"one_step": 0.5, "short": -0.2, "chatter": -1.0},
            -0.2,
        ),
        ({"one_step"}, {}, None),
        (set(), {"one_step": -1.0}, None),
    ],
)
def test_a_flagged_response_earns_at_most_its_lowest_cap(
    names: set[str], caps: dict[str, float], expected: float | None
) -> None:
    rewards = np.array([0.9, -0.4], dtype=np.float32)
    spans = np.array([[0, 2], [2, 3]])
    given = JudgedResponse("x", spans, rewards, True, Verdict("correct", "5"))
    made = cap_rewards(given, Flags(0.0, frozenset(names)), caps)
    if expected is None:
        assert made is given
        return
    np.testing.assert_allclose(made.step_rewards, [expected, -0.4])
    assert made.step_rewards.dtype == np.float32
    assert made.verifiable_reward == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hack_caps": {"one_steps": -1.0}}, r"`hack_caps` \('one_steps'\) must name"),
        ({"hack_caps": {"one_step": -2.0}}, r"`hack_caps` .* must be >= -1"),
        ({"hack_caps": {"one_step": True}}, r"`hack_caps` .* must be a number"),
        ({"hack_caps": [1]}, r"`hack_caps` \(\[1\]\) must be a mapping"),
        (
            {"hack_caps": {"one_step": -1.0}, "process_reward_coeff": 0.0},
            "`hack_caps` .* has no effect",
        ),
        ({"hack_limits": {"long": 0.5}}, r"unknown keys \['long'\]"),
        ({"hack_limits": {"short": 5}}, r"`hack_limits`: `short` \(5\) must be < 1"),
        ({"hack_limits": {"short": 1.0}}, r"`short` \(1.0\) must be < 1"),
        ({"hack_limits": {"short": 0.0}}, r"`short` \(0.0\) must be > 0"),
        *(({"hack_limits": {"short": v}}, "must be a number") for v in (True, "a")),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    config = PUREConfig().environment("pure_rllib/Arithmetic-v0")
    with pytest.raises(ValueError, match=message):
        config.training(**settings).validate()
