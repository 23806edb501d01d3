"""Checkpoints of remote learners, whole and damaged, with and without DeepSpeed."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.rllib.core import DEFAULT_MODULE_ID

from pure_rllib.algorithms import PURE, PUREConfig
from pure_rllib.distributed.calls import on_learners
from pure_rllib.distributed.collectives import CollectiveBrokenError
from pure_rllib.learners.learner_group import PURELearnerGroup, _stamp
from pure_rllib.learners.zero_weights import ZeroPolicy
from tests.integration.conftest import built, make_tiny_config, weights

pytestmark = pytest.mark.slow

LEARNERS = "learner_group/learner"
MODULE_FILE = f"{LEARNERS}/rl_module/{DEFAULT_MODULE_ID}/module_state.pkl"


def make_config(deepspeed: dict[str, Any] | None) -> PUREConfig:
    return (
        make_tiny_config()
        .env_runners(num_prompts=2, max_response_tokens=16)
        .learners(num_learners=2, num_cpus_per_learner=0.5, deepspeed=deepspeed)
    )


class Runs:
    """A run that was never interrupted, and one restored from its checkpoint."""

    def __init__(self, folder: Path, deepspeed: dict[str, Any] | None):
        with built(make_config(deepspeed)) as algo:
            algo.train()
            self.checkpoint = Path(algo.save_to_path(folder / "checkpoint"))
            algo.train()
            self.uninterrupted = weights(algo)
        self.restored = PURE.from_checkpoint(str(self.checkpoint))

    def damaged(self, folder: Path) -> tuple[Path, Path]:
        """A copy of the checkpoint, and a file in it that was cut in half."""
        copy = folder / "damaged"
        shutil.copytree(self.checkpoint, copy)
        file = copy / MODULE_FILE
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return copy, file


@pytest.fixture(scope="module", params=["replicas", "stage 2"])
def runs(
    request: pytest.FixtureRequest,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Runs]:
    deepspeed = None
    if request.param == "stage 2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
        deepspeed = {"stage": 2}
    runs = Runs(tmp_path_factory.mktemp("runs"), deepspeed)
    yield runs
    runs.restored.stop()


def test_a_restored_run_goes_on_like_one_without_interruption(runs: Runs) -> None:
    runs.restored.restore_from_path(str(runs.checkpoint))
    assert runs.restored.train()["training_iteration"] == 2
    assert runs.uninterrupted
    for name, array in weights(runs.restored).items():
        np.testing.assert_array_equal(array, runs.uninterrupted[name], err_msg=name)


def test_the_driver_never_holds_the_learners_state(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.restored.restore_from_path(str(runs.checkpoint))
    held: list[list[str]] = []
    get_state = PURELearnerGroup.get_state

    def watched(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = get_state(*args, **kwargs)
        held.append(list(state))
        return state

    monkeypatch.setattr(PURELearnerGroup, "get_state", watched)
    runs.restored.save_to_path(tmp_path / "checkpoint")
    assert not any(held)
    monkeypatch.undo()
    before = weights(runs.restored)
    # Where they do not see its folder, the files are sent.
    see = PURELearnerGroup._see
    monkeypatch.setattr(PURELearnerGroup, "_see", lambda *args, **kwargs: False)
    runs.restored.save_to_path(tmp_path / "sent")
    for name, sees in (
        ("sent", lambda *args: False),
        ("sent", see),
        ("checkpoint", see),
    ):
        monkeypatch.setattr(PURELearnerGroup, "_see", sees)
        runs.restored.train()
        runs.restored.restore_from_path(str(tmp_path / name))
        for key, array in weights(runs.restored).items():
            np.testing.assert_array_equal(array, before[key], err_msg=key)


def test_learners_write_to_storage_that_is_on_no_node(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    runs.restored.restore_from_path(str(runs.checkpoint))
    before = weights(runs.restored)
    monkeypatch.setattr(PURELearnerGroup, "get_state", lambda *args, **kwargs: {})
    runs.restored.save_to_path("checkpoint", filesystem=storage)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint" / MODULE_FILE).is_file()
    runs.restored.train()
    runs.restored.restore_from_path("checkpoint", filesystem=storage)
    for key, array in weights(runs.restored).items():
        np.testing.assert_array_equal(array, before[key], err_msg=key)


def test_a_checkpoint_is_told_from_another_at_the_same_place(tmp_path: Path) -> None:
    for name, content in (("one", b"1"), ("two", b"2")):
        (tmp_path / name / "learner_group").mkdir(parents=True)
        (tmp_path / name / "algorithm_state.pkl").write_bytes(content)
        (tmp_path / name / "learner_group/metadata.json").write_bytes(b"{}")
    one, two, absent = (
        _stamp(tmp_path / name / "learner_group") for name in ("one", "two", "three")
    )
    assert one != two and one != absent


def limit_file_size(algo: PURE, num_bytes: int) -> None:
    """What a full disk does to the first learner: larger files cannot be written."""

    def limit(learner: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))

    on_learners(algo.learner_group, limit, only=[0])


def test_a_checkpoint_that_a_learner_cannot_write_is_none(runs: Runs) -> None:
    before = (runs.checkpoint / MODULE_FILE).read_bytes()
    folder = runs.checkpoint.parent
    runs.restored.restore_from_path(str(runs.checkpoint))
    limit_file_size(runs.restored, len(before) // 2)
    try:
        for target in (runs.checkpoint, folder / "another"):
            with pytest.raises(OSError, match="too large"):
                runs.restored.save_to_path(target)
    finally:
        limit_file_size(runs.restored, resource.RLIM_INFINITY)
    assert [path.name for path in folder.iterdir()] == [runs.checkpoint.name]
    assert (runs.checkpoint / MODULE_FILE).read_bytes() == before
    # The learners live, and the next checkpoint is whole.
    runs.restored.save_to_path(folder / "later")
    assert (folder / "later" / MODULE_FILE).read_bytes() == before


def test_a_damaged_checkpoint_stops_a_restore(runs: Runs, tmp_path: Path) -> None:
    damaged, file = runs.damaged(tmp_path)
    with pytest.raises(ValueError, match="must be a whole checkpoint") as raised:
        runs.restored.restore_from_path(str(damaged))
    assert str(file) in str(raised.value)
    assert "algorithm_state" not in str(raised.value)
    file.unlink()
    with pytest.raises(ValueError, match=r"has no .*module_state\.pkl"):
        runs.restored.restore_from_path(str(damaged))
    # The learners live.
    runs.restored.restore_from_path(str(runs.checkpoint))


def test_a_restore_names_where_it_waits() -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

    def refresh() -> None:
        raise RuntimeError("connection closed")

    optimizer = SimpleNamespace(refresh_fp32_params=refresh)
    policy = torch.nn.Linear(2, 2)
    ones = {name: torch.ones_like(t) for name, t in policy.state_dict().items()}
    zero_policy = ZeroPolicy(policy, SimpleNamespace(optimizer=optimizer))
    with pytest.raises(CollectiveBrokenError, match=r'phase "load state".*closed'):
        zero_policy.load_state_dict(ones)
    assert torch.equal(policy.weight, ones["weight"])
