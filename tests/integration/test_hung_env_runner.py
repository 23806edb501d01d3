"""An env runner that neither answers nor dies."""

import logging
import os
import signal
from collections import Counter
from contextlib import suppress
from time import monotonic, sleep

import pytest

from pure_rllib.algorithms import PUREConfig
from tests.integration.conftest import built, flat, process_of


@pytest.mark.slow
@pytest.mark.parametrize(("num_env_runners", "lag"), [(1, 0), (2, 1)])
def test_a_stopped_env_runner_is_replaced_and_its_prompts_asked_again(
    tiny_config: PUREConfig,
    caplog: pytest.LogCaptureFixture,
    num_env_runners: int,
    lag: int,
) -> None:
    tiny_config.env_runners(
        num_env_runners=num_env_runners, num_cpus_per_env_runner=0.5
    )
    tiny_config.training(max_weight_lag=lag)
    with built(tiny_config) as algo:
        algo.train()
        # Loading is over; what follows takes less than a second.
        algo.env_runner_group._remote_config._is_frozen = False
        algo.env_runner_group._remote_config.sample_timeout_s = 5.0
        victim = process_of(algo, 1)
        os.kill(victim, signal.SIGSTOP)
        try:
            start = monotonic()
            with caplog.at_level(logging.WARNING):
                asked_after, resampled = [], 0.0
                # With a lag the first of these was sampled before the stop.
                for _ in range(1 + lag):
                    result = flat(algo.train())
                    resampled += result["groups/resampled"]
                    asked_after += [g.group_id for g in algo._last_batch.groups]
            # Alone, it has to be started again first; else the other one stands in.
            assert monotonic() - start < (25.0 if num_env_runners == 2 else 90.0)
            assert resampled == 4.0 / num_env_runners
            assert "Env runner 1 did not answer within `sample_timeout_s` (5)" in (
                caplog.text
            )
            assert Counter(asked_after) == Counter(range(4, 8 + 4 * lag))
            # Ray makes a new one, in a new process, which samples.
            deadline = monotonic() + 60.0
            while len(algo.env_runner_group.healthy_env_runner_ids()) < num_env_runners:
                algo.env_runner_group.probe_unhealthy_env_runners()
                assert monotonic() < deadline, "no env runner was started in its place"
                sleep(0.5)
            assert process_of(algo, 1) != victim
            assert flat(algo.train())["groups/resampled"] == 0.0
        finally:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
