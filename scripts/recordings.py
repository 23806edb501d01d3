"""Records what short runs do, and compares a later version with it, bit for bit.

For changes that must not change behaviour: make the recordings before, compare after,
on the same machine.

    python scripts/recordings.py make FOLDER [NAME ...]
    python scripts/recordings.py compare FOLDER [NAME ...]

A recording holds every metric of every iteration but those of time, a hash of the
exported policy, and for wrong settings the message. `make` also keeps each run's last
checkpoint, `FOLDER/NAME/checkpoint`, and `compare` restores it with the present code.
"""

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

PROGRAM = (sys.executable, "-m", "pure_rllib.cli")
OF_TIME = ("seconds/", "throughput/", "time_", "sampling/overlap_share")
SIMULATED = "environment.env_config.process_rewards=simulated"
PROCESS_ONLY = "training.verifiable_reward_coeff=0.0"
ITERATIONS = 20

# name -> tuned example, iterations, settings
RUNS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "local": ("arithmetic", ITERATIONS, ()),
    "packed": ("arithmetic", ITERATIONS, ("learners.packing=auto",)),
    "learners_1": ("arithmetic", ITERATIONS, ("learners.num_learners=1",)),
    "actors_2_2": (
        "arithmetic",
        ITERATIONS,
        ("learners.num_learners=2", "env_runners.num_env_runners=2"),
    ),
    "lag_1": (
        "arithmetic",
        ITERATIONS,
        ("env_runners.num_env_runners=1", "training.max_weight_lag=1"),
    ),
    "zero_2": (
        "arithmetic",
        ITERATIONS,
        ("learners.num_learners=2", "learners.deepspeed.stage=2"),
    ),
    "zero_3": (
        "arithmetic",
        5,
        ("learners.num_learners=2", "learners.deepspeed.stage=3"),
    ),
    "prm": ("arithmetic_prm", ITERATIONS, ()),
    "prm_actors": ("arithmetic_prm", 5, ("env_runners.num_prm_actors=2",)),
    "credit_min": (
        "arithmetic",
        ITERATIONS,
        (
            "environment.env_config.task=y",
            SIMULATED,
            PROCESS_ONLY,
            "training.baseline=response",
        ),
    ),
    "credit_sum": (
        "arithmetic",
        ITERATIONS,
        (
            "environment.env_config.task=y",
            SIMULATED,
            PROCESS_ONLY,
            "training.baseline=response",
            "training.credit_assignment=sum",
        ),
    ),
    "sparse_both": (
        "arithmetic",
        ITERATIONS,
        (
            "environment.env_config.task=sparse",
            SIMULATED,
            "environment.env_config.answer_fraction=0.1",
            "training.baseline=response",
        ),
    ),
    "verifiable_refill": (
        "arithmetic",
        5,
        (
            "environment.env_config.process_rewards=none",
            "training.process_reward_coeff=0.0",
            "training.no_signal_groups=refill",
        ),
    ),
    "mini_batches": (
        "arithmetic",
        8,
        (
            SIMULATED,
            "training.minibatch_size=32",
            "training.num_epochs=2",
            "training.clip_param_high=0.28",
            "training.entropy_coeff=0.01",
            "training.kl_coeff=0.01",
            "training.kl_placement=loss",
            "training.kl_estimator=k3",
            "training.loss_aggregation=sequence_mean",
            "training.normalize_advantages=true",
        ),
    ),
    "preset_openrlhf": (
        "arithmetic",
        8,
        (SIMULATED, "training.preset=pure_openrlhf", "training.lr=6e-4"),
    ),
    "preset_verl": (
        "arithmetic",
        8,
        (
            SIMULATED,
            "training.preset=pure_verl",
            "training.baseline=response",
            "training.lr=6e-4",
        ),
    ),
    "preset_paper": (
        "arithmetic",
        8,
        (
            SIMULATED,
            "training.preset=paper",
            "training.baseline=length",
            "training.lr=6e-4",
        ),
    ),
    "caps": (
        "arithmetic_prm",
        8,
        (
            "training.hack_caps.one_step=-0.5",
            "reporting.hacking_monitor=warn",
            "training.mask_truncated=true",
        ),
    ),
    "lora": (
        "arithmetic",
        5,
        (SIMULATED, "rl_module.model_config.lora.r=4", "training.lr=2e-3"),
    ),
    "bfloat16": (
        "arithmetic",
        5,
        (SIMULATED, "rl_module.model_config.dtype=bfloat16"),
    ),
    "vllm": ("arithmetic", 5, (SIMULATED, "env_runners.generator=vllm")),
}

# Settings that cannot work; each is refused before a model loads.
WRONG: dict[str, tuple[str, ...]] = {
    setting: (setting,)
    for setting in (
        "env_runners.group_size=1",
        "env_runners.group_size=2.5",
        "env_runners.top_p=0",
        "env_runners.temperature=0",
        "env_runners.num_prompts=0",
        "env_runners.generator=other",
        "env_runners.generator_kwargs.foo=1",
        "env_runners.max_logp_gap=-1",
        "env_runners.max_response_tokens=0",
        "env_runners.num_prm_actors=-1",
        "env_runners.prm_actor_kwargs.num_cpus=1",
        "env_runners.explore=false",
        "training.preset=other",
        "training.formulas=other",
        "training.credit_assignment=max",
        "training.credit_temperature=0",
        "training.gamma=0.5",
        "training.baseline=other",
        "training.process_reward_coeff=-1",
        "training.verifiable_reward_coeff=nan",
        "training.clip_param=0",
        "training.clip_param=abc",
        "training.clip_param_high=-1",
        "training.loss_aggregation=other",
        "training.kl_coeff=-0.1",
        "training.kl_estimator=k9",
        "training.kl_placement=other",
        "training.entropy_coeff=-1",
        "training.micro_batch_tokens=0",
        "training.minibatch_size=3",
        "training.num_epochs=0",
        "training.adam_betas=[0.9]",
        "training.weight_decay=-1",
        "training.rollout_correction=other",
        "training.rollout_correction_cap=2",
        "training.max_weight_lag=1",
        "training.max_weight_lag=2",
        "training.no_signal_groups=other",
        "training.hack_caps.other=0",
        "training.hack_caps.one_step=2",
        "training.hack_limits.other=1",
        "training.lr=-1",
        "training.grad_clip_by=value",
        "training.train_batch_size=3",
        "training.foo=1",
        "reporting.hacking_monitor=other",
        "reporting.hacking_thresholds.other=1",
        "learners.deepspeed.stage=4",
        "learners.collective_timeout_s=0",
        "learners.weight_transport=other",
        "learners.num_learners=-1",
        "rl_module.model_config.foo=1",
        "rl_module.model_config.dtype=int8",
        "rl_module.model_config.autocast_dtype=float16",
        "rl_module.model_config.lora.foo=1",
        "rl_module.model_config.model=/not/there",
        "environment.env_config.task=other",
        "environment.env_config.process_rewards=other",
        "environment.env_config.foo=1",
        "evaluation.evaluation_duration=0",
        "evaluation.evaluation_num_env_runners=1",
        "debugging.seed=-1",
        "foo.bar=1",
    )
}


def record_run(name: str, folder: Path) -> dict[str, Any]:
    """Runs an example in `folder` and returns its metrics and the policy's hash."""
    example, iterations, settings = RUNS[name]
    words = [*PROGRAM, "train", example, "--iterations", str(iterations)]
    # Flat rows change last digits: what was recorded without them stays comparable.
    settings = ("learners.packing=false", *settings)
    words += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [*words, "--out", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return {
        "rows": rows_of(folder),
        "policy": policy_hash(folder / "policy"),
        "rollouts": hash_of_texts(folder),
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Every metric that is not of time; as text, so that equal means to the bit."""
    lines = (folder / "result.json").read_text().splitlines()
    return [
        {
            key: repr(value)
            for key, value in json.loads(line).items()
            if not key.startswith(OF_TIME)
            and value is not None
            and not (isinstance(value, float) and math.isnan(value))
        }
        for line in lines
    ]


def policy_hash(folder: Path) -> str:
    """Hashes names and bytes of all tensors."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        for key, tensor in sorted(load_file(file).items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_of_texts(folder: Path) -> str:
    """Hashes the kept rollouts: texts, scores, returns, advantages."""
    digest = hashlib.sha256()
    for file in sorted((folder / "rollouts").iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def record_messages() -> dict[str, str]:
    """What the command line says of each wrong setting, with its exit status."""
    code = (
        "import contextlib, io, json, sys\n"
        "from pure_rllib.cli.main import main\n"
        "said = {}\n"
        "for name, settings in json.loads(sys.argv[1]).items():\n"
        "    words = ['train', 'arithmetic', '--iterations', '1']\n"
        "    for setting in settings:\n"
        "        words += ['--set', setting]\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stderr(out):\n"
        "        status = main(words)\n"
        "    said[name] = f'{status} {out.getvalue()}'\n"
        "print('RESULT' + json.dumps(said))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(WRONG)],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
        )
    return json.loads(done.stdout.split("RESULT")[-1])


def restored(checkpoint: Path) -> str:
    """Restores a checkpoint and hashes the policy that it holds."""
    code = (
        "import sys\n"
        "import ray\n"
        "from pure_rllib.algorithms import PURE\n"
        "ray.init('local', num_cpus=4, include_dashboard=False, log_to_driver=False)\n"
        "algo = PURE.from_checkpoint(sys.argv[1])\n"
        "algo.export_policy(sys.argv[2])\n"
        "algo.train()\n"
        "algo.stop()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy"
        done = subprocess.run(
            [sys.executable, "-c", code, str(checkpoint), str(policy)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return f"failed: {done.stderr[-1500:]}"
        return policy_hash(policy)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two recordings of a run, each metric where it begins."""
    found = [key for key in ("policy", "rollouts") if before[key] != now[key]]
    first: dict[str, str] = {}
    for i, (old, new) in enumerate(zip(before["rows"], now["rows"], strict=False)):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                first.setdefault(key, f"row {i}: {old.get(key)} -> {new.get(key)}")
    found += [f"{key}: {where}" for key, where in first.items()]
    if len(before["rows"]) != len(now["rows"]):
        found.append(f"rows: {len(before['rows'])} -> {len(now['rows'])}")
    return found


def make(folder: Path, names: list[str]) -> int:
    """Makes recordings; those that are there already are left."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = folder / f"{name}.json"
        if target.exists():
            continue
        if name == "messages":
            recording: Any = record_messages()
        else:
            with tempfile.TemporaryDirectory() as place:
                run = Path(place) / "run"
                recording = record_run(name, run)
                last = sorted((run / "checkpoints").iterdir())[-1]
                shutil.copytree(last, folder / name / "checkpoint")
        target.write_text(json.dumps(recording, indent=1) + "\n")
        print(f"{name}: recorded", flush=True)
    return 0


def compare(folder: Path, names: list[str]) -> int:
    """Compares the present code with recordings; returns how many differ."""
    num_different = 0
    for name in names:
        before = json.loads((folder / f"{name}.json").read_text())
        if name == "messages":
            now = record_messages()
            found = [
                f"{key}:\n  - {before.get(key)}  + {now.get(key)}"
                for key in before | now
                if before.get(key) != now.get(key)
            ]
        else:
            with tempfile.TemporaryDirectory() as place:
                found = differences(before, record_run(name, Path(place) / "run"))
            policy = restored(folder / name / "checkpoint")
            if policy != before["policy"]:
                found.append(f"the checkpoint: {policy}")
        num_different += bool(found)
        print(f"{name}: " + ("equal" if not found else "DIFFERS"), flush=True)
        for line in found:
            print(f"  {line}")
    return num_different


def main() -> int:
    """Reads the command line; the exit status is the number of differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[])
    options = parser.parse_args()
    known = [*RUNS, "messages"]
    names = options.names or known
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {sorted(unknown)}; known: {known}")
    function = make if options.command == "make" else compare
    return function(options.folder, names)


if __name__ == "__main__":
    sys.exit(main())
