"""The responses of a run as labelled solutions: a PRM learns from its own hacks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pure_rllib.cli.folder import RunFolder, read_rollouts, stored_experiment
from pure_rllib.credit.steps import SEPARATOR
from pure_rllib.prm_training.solutions import LabelledSolution
from pure_rllib.rewards.make import import_named

Labeller = Callable[[str, tuple[str, ...]], Sequence[float]]


def labelled_rollouts(
    run: str, labeller: str | None = None
) -> tuple[list[LabelledSolution], int]:
    """Reads the rollouts that a run kept and has their steps labelled.

    Args:
        run: the folder of a run.
        labeller: `module:name` of a function from the problem and the steps' texts to
            one number per step: right from 0 on, wrong below; a judge goes here. None:
            the environment's exact checker, which the arithmetic environment has.

    Returns:
        Each response once, in the order of sampling; and how many were left out, being
        without a step or not splitting into the steps that were scored.

    Raises:
        FileNotFoundError: the folder is no run, or has no rollouts.
        ValueError: the environment has no checker, or the function cannot be had.
    """
    folder = RunFolder(Path(run).expanduser())
    if not folder.experiment_file.is_file():
        raise FileNotFoundError(
            f"`--rollouts` ({run}) must be the folder of a run, and has no "
            "experiment.yaml. Set what `pure-rllib train --out` wrote."
        )
    label: Labeller = (
        import_named("--labeller", labeller) if labeller else _checker(folder, run)
    )
    iterations = read_rollouts(folder.rollouts)
    if not iterations:
        raise FileNotFoundError(
            f"`--rollouts` ({run}) must hold responses in {folder.rollouts.name}/, and "
            "there are none. Set report.rollouts_every in the run's experiment."
        )
    solutions: dict[tuple[str, tuple[str, ...]], LabelledSolution] = {}
    num_left_out = 0
    for record in (r for groups in iterations.values() for g in groups for r in g):
        parts = (part.strip() for part in record.response_text.split(SEPARATOR))
        steps = tuple(part for part in parts if part)
        if len(steps) != len(record.step_spans):
            num_left_out += 1
            continue
        key = (record.prompt, steps)
        if key not in solutions:
            numbers = np.asarray(label(*key), dtype=np.float64)
            if numbers.shape != (len(steps),):
                raise ValueError(
                    f"`--labeller` ({labeller}) must return one number per step; it "
                    f"returned shape {numbers.shape} for {len(steps)} steps."
                )
            labels = tuple(bool(number >= 0) for number in numbers)
            solutions[key] = LabelledSolution(record.prompt, steps, labels)
    return list(solutions.values()), num_left_out


def _checker(folder: RunFolder, run: str) -> Labeller:
    """Returns the exact checker of the run's environment."""
    from pure_rllib.arithmetic.checker import exact_scorer
    from pure_rllib.envs.arithmetic import TASKS

    environment = stored_experiment(folder).config.get("environment", {})
    if environment.get("env") != "pure_rllib/Arithmetic-v0":
        raise ValueError(
            f"`--labeller` (not set) must name a function for {run}, because its "
            f"environment, {environment.get('env')}, has no checker of steps. Set "
            "--labeller my_module:judge."
        )
    task = (environment.get("env_config") or {}).get("task", "z")
    return exact_scorer(TASKS[task][0].modulus).function
