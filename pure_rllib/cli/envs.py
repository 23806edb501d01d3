"""`pure-rllib envs`: what can be trained on, and how it looks to a policy."""

import argparse
import inspect
import os
import textwrap
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pure_rllib.data.problems import Problem
    from pure_rllib.envs.token_env import TokenEnv

DESCRIPTION = """\
Lists the environments that can be trained on, or shows one.

  pure-rllib envs
  pure-rllib envs Arithmetic-v0 --show 3
  pure-rllib envs leg_counting --set tokenizer=path/of/policy --set config.max_animals=4
  pure-rllib envs my_experiment.yaml

Shown are problems, each prompt as the model sees it, and what random tokens earn: what
these are paid is paid for nothing.
"""
_REASONING_GYM = "pure_rllib/ReasoningGym-v0"
_NUM_EPISODES = 8
_MEAN_TURN_TOKENS = 16
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def add_command(commands: Any) -> None:
    """Adds `envs` to the subparsers of the command line."""
    parser = commands.add_parser(
        "envs",
        help="list the environments, or show one",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="id, task of reasoning-gym, YAML file or tuned example",
    )
    parser.add_argument(
        "--show", type=int, default=1, metavar="N", help="so many problems (default: 1)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set an argument of the environment; can be given several times",
    )


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.name is None:
        print("\n".join(listing()))
        return 0
    if options.show < 1:
        raise ValueError(f"`--show` ({options.show}) must be >= 1.")
    env_id, env_config = _find(options.name, options.set)
    env = make_environment(env_id, env_config)
    print("\n".join([env_id, *looks(env, options.show)]))
    env.close()
    return 0


def listing() -> Iterable[str]:
    """Returns a line for each environment, and for each task of reasoning-gym."""
    from gymnasium.envs.registration import load_env_creator

    from pure_rllib.envs import ENV_IDS

    yield from _table({k: load_env_creator(v) for k, v in sorted(ENV_IDS.items())})
    if find_spec("reasoning_gym") is None:
        yield (
            f"\nTasks of {_REASONING_GYM} are listed once reasoning-gym is installed: "
            "pip install 'pure-rllib[reasoning-gym]'"
        )
        return
    from reasoning_gym.factory import DATASETS

    yield f"\nTasks of {_REASONING_GYM}:"
    yield from _table({name: DATASETS[name][0] for name in sorted(DATASETS)})


def _table(named: Mapping[str, Any]) -> Iterable[str]:
    width = max(map(len, named))
    for name, what in named.items():
        # Of its own: a base class says nothing about this one.
        own = what.__doc__ or f"{what.__module__.split('.')[1]} task"
        first = inspect.cleandoc(own).partition("\n")[0].partition(";")[0]
        text = textwrap.shorten(first, 86 - width, placeholder=" ...")
        yield f"{name:<{width}}  {text.removesuffix('.')}"


def _find(name: str, changes: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Returns id and arguments of what a name of the command line means."""
    import gymnasium as gym

    import pure_rllib.envs  # noqa: F401  registers ours
    from pure_rllib.cli.experiment import EXAMPLES, load_experiment, read_setting
    from pure_rllib.cli.settings import put

    env_config: dict[str, Any] = {}
    if name.endswith((".yaml", ".yml")) or (EXAMPLES / f"{name}.yaml").is_file():
        environment = load_experiment(name).config["environment"]
        env_id, env_config = environment["env"], dict(environment.get("env_config", {}))
    elif name in gym.registry or ":" in name:
        env_id = name
    elif f"pure_rllib/{name}" in gym.registry:
        env_id = f"pure_rllib/{name}"
    elif "/" in name or name.endswith("-v0"):
        ours = [n for n in gym.registry if n.startswith("pure_rllib/")]
        raise ValueError(
            f"`NAME` ({name}) must be an environment that is registered; ours are "
            f"{', '.join(ours)}; or a task of reasoning-gym."
        )
    else:
        env_id, env_config = _REASONING_GYM, {"task": name, "size": 100, "eval_size": 0}
    for change in changes:
        path, value = read_setting(change)
        put(env_config, path, value)
    return env_id, env_config


def make_environment(env_id: str, env_config: dict[str, Any]) -> "TokenEnv":
    """Makes an environment; without a tokenizer with one of bytes."""
    import gymnasium as gym

    from pure_rllib.rollouts.env_summary import token_env_of
    from pure_rllib.testing import byte_tokenizer

    spec = gym.spec(env_id)
    make: Any = spec.entry_point
    if isinstance(make, str):
        make = gym.envs.registration.load_env_creator(make)
    missing = {
        name
        for name, p in inspect.signature(make).parameters.items()
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY
    } - {*spec.kwargs, *env_config}
    if "tokenizer" in missing:
        missing.remove("tokenizer")
        tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
        tokenizer.chat_template = _CHATML
        env_config = {**env_config, "tokenizer": tokenizer}
        print(
            "Shown in ChatML and a tokenizer of bytes; yours: --set tokenizer=FOLDER\n"
        )
    if missing:
        raise ValueError(
            f"`{min(missing)}` (not given) must be set for {env_id}, because it has no "
            f"default. Add --set {min(missing)}=VALUE."
        )
    made = gym.make(env_id, disable_env_checker=True, **env_config)
    return token_env_of(made, env_id)


def looks(env: "TokenEnv", num_problems: int) -> Iterable[str]:
    """Returns lines: problems, their prompts, and what random tokens earn.

    Args:
        env: the environment.
        num_problems: first training problems, at most.
    """
    yield f"{len(env.problems)} problems"
    for index in range(min(num_problems, len(env.problems))):
        problem = env.problems[index]
        answer = "" if problem.answer is None else f", answer {problem.answer}"
        yield f"\nproblem {problem.problem_id or index}{answer}"
        prompt = env.tokenizer.decode(env.encode_prompt(problem))
        yield from (f"  | {line}" for line in prompt.split("\n"))
        yield f"  random tokens earn {_earned(env, problem, seed=index)}"


def _earned(env: "TokenEnv", problem: "Problem", seed: int) -> str:
    """Says what a random policy earns: any token, and an end now and then."""
    import numpy as np

    rng = np.random.default_rng(seed)
    ends = sorted(env.eos_token_ids)
    process: list[float] = []
    verifiable: list[float | None] = []
    for _ in range(_NUM_EPISODES):
        env.reset(seed=seed, options={"problem": problem})
        rewards, is_over = 0.0, False
        info: dict[str, Any] = {}
        while not is_over:
            is_end = rng.random() < 1.0 / _MEAN_TURN_TOKENS
            token = int(rng.choice(ends) if is_end else rng.integers(env.vocab_size))
            _, reward, terminated, truncated, info = env.step(token)
            rewards += reward
            is_over = terminated or truncated
        process.append(rewards)
        verifiable.append(info["verifiable_reward"])
    parts = []
    known = [reward for reward in verifiable if reward is not None]
    if known:
        parts.append(f"verifiable reward {np.mean(known):.2f} (at most {max(known):g})")
    if any(process):
        parts.append(f"process rewards {np.mean(process):.2f} in sum")
    return ", ".join(parts or ["nothing: there is no reward"])
