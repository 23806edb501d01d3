"""The monitor in a real run; a callback before it writes the metrics of a hack."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from pure_rllib.algorithms import PURE, PUREConfig, RewardHackingMonitor
from tests.integration.conftest import TINY_POLICY, built, flat, weights

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


def watched(config: PUREConfig, action: str | None) -> AbstractContextManager[PURE]:
    config.callbacks([Hack, RewardHackingMonitor] if action is None else Hack)
    thresholds = {"window": 2, "memory": 6, "noise": 1.0, "pseudo_positive_rise": 2.0}
    config.reporting(hacking_monitor=action, hacking_thresholds=thresholds)
    return built(config)


def test_it_warns_and_goes_on_or_stops(
    tiny_config: PUREConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with watched(tiny_config.copy(), None) as algo:
        results = [algo.train() for _ in range(ALARM - 1)]
        checkpoint = algo.save_to_path(str(tmp_path / "checkpoint"))
        results += [algo.train() for _ in range(2)]
    assert [r["hacking"]["alarm"] for r in results] == [0] * (ALARM - 1) + [1, 1]
    assert results[-1]["hacking"]["signal"]["one_step"] == 1.0
    assert sum(results[-1]["hacking"]["signal"].values()) == 1.0
    assert not any(r["done"] for r in results)
    shown = capsys.readouterr().out
    # Once, not with every iteration.
    assert shown.count("more responses are a single step") == 1
    # A resumed run is compared with what it was, and may be one that stops.
    with watched(tiny_config, "stop") as algo:
        algo.restore_from_path(checkpoint)
        result = algo.train()
    assert result["training_iteration"] == ALARM and result["done"]
    assert result["hacking"]["signal"]["one_step"] == 1.0


def test_it_goes_back_to_the_last_good_policy(tiny_config: PUREConfig) -> None:
    with watched(tiny_config, "go_back") as algo:
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


def test_what_judges_count_reaches_the_results(tiny_config: PUREConfig) -> None:
    tiny_config.environment(
        env_config={
            "process_rewards": "none",
            "prm": TINY_POLICY,
            "prm_kwargs": {
                "prm_format": "generative",
                "template": "{step}",
                "verdicts": ["1", "2"],
                "votes": {"num_votes": 2, "max_verdict_tokens": 4},
            },
            "verifier": "hybrid",
            "verifier_kwargs": {
                "boxed_only": True,
                "second_opinion": lambda gold, answer: True,
            },
        }
    )
    with built(tiny_config) as algo:
        result = algo.train()
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
    with built(tiny_config) as algo:
        share = flat(algo.train())["response/one_step_share"]
        groups = algo.rollouts(4)
    flagged = ["one_step" in record.hacks for group in groups for record in group]
    assert any(flagged) and not all(flagged)
    assert share == pytest.approx(sum(flagged) / len(flagged))
    for group in groups:
        for record in group:
            assert record.step_rewards is not None and record.returns is not None
            is_flagged = "one_step" in record.hacks
            assert (max(record.step_rewards) == cap) == is_flagged
            # In a mixed group the capped responses are the worst off.
            if is_flagged:
                assert sum(record.returns) <= cap + 1e-6


def test_single_steps_are_warned_of_once(
    tiny_config: PUREConfig, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_config.environment(env_config={"process_rewards": "simulated"})
    tiny_config.env_runners(max_response_tokens=1)
    with built(tiny_config) as algo:
        assert "blank lines" in algo.env_summary.steps
        assert flat(algo.train())["response/one_step_share"] == 1.0
        algo.train()
    warnings = [m for m in caplog.messages if "every response is a single step" in m]
    assert len(warnings) == 1 and warnings[0].startswith("Iteration 1:")
