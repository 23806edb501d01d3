"""A checkpoint of 0.1.0 before its modules moved: two iterations of a tiny policy.

It was written with the policy beside it, exported from the same algorithm.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from pure_rllib.algorithms import PURE

DATA = Path(__file__).resolve().parents[1] / "data"


def test_an_earlier_checkpoint_restores_and_goes_on(
    ray_cluster: None, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(DATA / "earlier_checkpoint", checkpoint)
    algo = PURE.from_checkpoint(str(checkpoint))
    try:
        assert algo.iteration == 2
        folder = algo.export_policy(tmp_path / "policy")
        restored = load_file(Path(folder) / "model.safetensors")
        before = load_file(DATA / "earlier_policy.safetensors")
        assert restored.keys() == before.keys()
        assert all(torch.equal(restored[name], before[name]) for name in before)
        assert algo.train()["training_iteration"] == 3
    finally:
        algo.stop()
