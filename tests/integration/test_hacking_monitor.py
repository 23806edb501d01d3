"""The monitor in a real run; a callback before it writes the metrics of a hack."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from pure_rllib.algorithms import PURE, PUREConfig, RewardHackingMonitor
from tests.integration.conftest import TINY_POLICY

pytestmark = pytest.mark.slow
HACK_STARTS = 5
ALARM = 5  # with windows of two iterations, the first of them is enough


class Hack(RLlibCallback):
    """From the fifth iteration on, everything is one step."""

    def on_train_result(self, *, result: dict[str, Any], **kwargs: Any) -> None:
        is_hacked = result["training_iteration"] >= HACK_STARTS
        for name in ("repetition", "no_answer_share"):
            result["response"][name] = 0.0
        result["response"]["one_step_share"] = float(is_hacked)
        result["accuracy"] = result["prm"]["verifier_agreement"] = 0.9
        result["reward"]["total"] = result["loss"]["policy"] = 0.0


def build(config: PUREConfig, action: str | None) -> PURE:
    config.callbacks([Hack, RewardHackingMonitor] if action is None else Hack)
    config.reporting(
        hacking_monitor=action,
        hacking_thresholds={
            "window": 2,
            "memory": 6,
            "noise": 1.0,
            "pseudo_positive_rise": 2.0,
        },
    )
    return config.build_algo()


def weights(algo: PURE) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_weights()["default_policy"]
    return {name: np.array(value) for name, value in state.items()}


def test_it_warns_and_goes_on(
    tiny_config: PUREConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    algo = build(tiny_config, None)
    try:
        results = [algo.train() for _ in range(ALARM + 1)]
    finally:
        algo.stop()
    assert [r["hacking"]["alarm"] for r in results] == [0] * (ALARM - 1) + [1, 1]
    assert results[-1]["hacking"]["signal"]["one_step"] == 1.0
    assert sum(results[-1]["hacking"]["signal"].values()) == 1.0
    assert not any(r["done"] for r in results)
    shown = capsys.readouterr().out
    # Once, not with every iteration.
    assert shown.count("more responses are a single step") == 1


def test_it_stops_the_trial(tiny_config: PUREConfig) -> None:
    algo = build(tiny_config, "stop")
    try:
        results = [algo.train() for _ in range(ALARM)]
    finally:
        algo.stop()
    assert [r["done"] for r in results] == [False] * (ALARM - 1) + [True]


def test_it_goes_back_to_the_last_good_policy(tiny_config: PUREConfig) -> None:
    algo = build(tiny_config, "go_back")
    try:
        algo.train()
        good = weights(algo)
        for _ in range(ALARM - 2):
            algo.train()
        assert any((good[k] != v).any() for k, v in weights(algo).items())
        result = algo.train()
        restored = weights(algo)
        assert result["hacking"]["alarm"] == 1.0 and not result["done"]
        for name, value in good.items():
            np.testing.assert_array_equal(restored[name], value, err_msg=name)
        after = algo.train()
        # The count of problems and iterations goes on from the hack, not from before.
        assert after["training_iteration"] == ALARM + 1
        assert after["problems_seen"] == 4 * (ALARM + 1)
        assert after["weights"]["version"] > result["weights"]["version"]
        assert any((restored[k] != v).any() for k, v in weights(algo).items())
    finally:
        algo.stop()


def test_a_resumed_run_is_compared_with_what_it_was(
    tiny_config: PUREConfig, tmp_path: Path
) -> None:
    algo = build(tiny_config.copy(), "warn")
    try:
        for _ in range(ALARM - 1):
            assert algo.train()["hacking"]["alarm"] == 0.0
        algo.save_to_path(str(tmp_path / "checkpoint"))
    finally:
        algo.stop()
    algo = build(tiny_config, "warn")
    try:
        algo.restore_from_path(str(tmp_path / "checkpoint"))
        result = algo.train()
    finally:
        algo.stop()
    assert result["training_iteration"] == ALARM
    assert result["hacking"]["signal"]["one_step"] == 1.0


def test_what_judges_count_reaches_the_results(tiny_config: PUREConfig) -> None:
    prm_kwargs = {
        "prm_format": "generative",
        "template": "{step}",
        "verdicts": ["1", "2"],
        "votes": {"num_votes": 2, "max_verdict_tokens": 4},
    }
    tiny_config.environment(
        env_config={
            "process_rewards": "none",
            "prm": TINY_POLICY,
            "prm_kwargs": prm_kwargs,
            "verifier": "hybrid",
            "verifier_kwargs": {
                "boxed_only": True,
                "second_opinion": lambda gold, answer: True,
            },
        }
    )
    algo = tiny_config.build_algo()
    try:
        result = algo.train()
    finally:
        algo.stop()
    prm, verifier = result["prm"], result["verifier"]
    assert prm["verdicts"] >= prm["unclear_verdicts"] > 0
    assert prm["verdicts"] % 2 == 0 and 0 < prm["ties"] <= prm["verdicts"] / 2
    # Everything that gets past the guards is accepted; a random policy boxes little.
    rejected = verifier["incorrect"] + verifier["no_answer"]
    assert verifier["opinion_guarded"] == rejected > 8
    assert verifier["opinion_accepted"] <= verifier["correct"] == 16 - rejected
    assert verifier["opinion_rejected"] == verifier["opinion_undecided"] == 0


def test_caps_reach_episodes_records_and_advantages(tiny_config: PUREConfig) -> None:
    cap = -1.0  # the simulated PRM gives nothing below -0.98
    tiny_config.environment(env_config={"process_rewards": "simulated"})
    tiny_config.training(hack_caps={"one_step": cap}, verifiable_reward_coeff=0.0)
    algo = tiny_config.build_algo()
    try:
        result = algo.train()
        records = [record for group in algo.rollouts(4) for record in group]
    finally:
        algo.stop()
    marked = ["one_step" in record.hacks for record in records]
    assert any(marked) and not all(marked)
    for record, is_marked in zip(records, marked, strict=True):
        assert record.step_rewards is not None
        assert (max(record.step_rewards) == cap) == is_marked
    share = sum(marked) / len(marked)
    assert result["response"]["one_step_share"] == pytest.approx(share)
    # In a mixed group the capped responses are the worst off.
    groups = {record.group_id for record in records}
    for group_id in groups:
        means: dict[bool, list[float]] = {True: [], False: []}
        for record, is_marked in zip(records, marked, strict=True):
            if record.group_id == group_id:
                means[is_marked].append(float(np.sum(record.returns)))
        assert all(value <= cap + 1e-6 for value in means[True])
