"""From the words of a command line to a run or a sweep."""

from collections.abc import Sequence

from pure_rllib.cli.experiment import Experiment, load_experiment
from pure_rllib.cli.folder import (
    check_unchanged,
    new_folder,
    open_folder,
    stored_experiment,
)
from pure_rllib.cli.session import quiet
from pure_rllib.cli.train import Run, say_flushed


def start(
    file_or_name: str | None,
    *,
    settings: Sequence[str] = (),
    out: str | None = None,
    resume: str | None = None,
    seed: int | None = None,
    iterations: int | None = None,
    verbose: bool = False,
) -> int:
    """Starts or resumes what `pure-rllib train` was asked for.

    Args:
        file_or_name: an experiment; None only with `resume`.
        settings: `section.key=value` options.
        out: the run's folder; None chooses one.
        resume: a run's folder or checkpoint.
        seed: replaces the experiment's.
        iterations: replaces the experiment's last iteration.
        verbose: show what Ray's processes write.

    Returns:
        The exit status.

    Raises:
        ValueError: something that was asked for cannot work.
        FileNotFoundError: a file or folder does not exist.
    """
    if not verbose:
        quiet()

    def changed(experiment: Experiment) -> Experiment:
        return experiment.with_overrides(settings, seed=seed, iterations=iterations)

    if resume is None:
        assert file_or_name is not None, "argparse lets neither pass"
        experiment = changed(load_experiment(file_or_name))
        folder, checkpoint = new_folder(out, experiment.name), None
    else:
        folder, checkpoint = open_folder(resume)
        stored = stored_experiment(folder)
        base = load_experiment(file_or_name) if file_or_name else stored
        experiment = changed(base)
        check_unchanged(stored, experiment, folder)
        if folder.is_sweep and experiment.stop != stored.stop:
            raise ValueError(
                f"`stop` ({experiment.stop}) of a sweep must stay {stored.stop} when "
                "it is resumed, because Ray Tune keeps it with its trials. Leave out "
                "--iterations, or start a new sweep with another --out."
            )
        if file_or_name and iterations is None:
            # The file's own end of the run; that of an option before may be later.
            experiment = experiment.with_overrides(
                iterations=max(experiment.num_iterations, stored.num_iterations)
            )
    if experiment.is_sweep:
        from pure_rllib.cli.sweep import Sweep

        return Sweep(
            experiment, folder, resume=resume is not None, verbose=verbose
        ).run()
    return Run(
        experiment, folder, checkpoint=checkpoint, verbose=verbose, say=say_flushed
    )()
