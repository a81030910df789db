"""What `rankwise attack` attacks where nothing is given: networks that it trains first."""

import shutil
from pathlib import Path

from rankwise.recipes.attack_options import DEFAULT_EPOCHS, DEFAULT_NORM, AttackOptions
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Watcher
from rankwise.recipes.images import Images
from rankwise.recipes.train import train_classifier
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.training import Interrupted, checkpoint_in
from rankwise.recipes.twins import DENSE
from rankwise.recipes.victims import LOW_RANK, Victim, victims_of_run

PLAIN, ROBUST = "low-rank", "robust"
"""Folders of their runs."""
NAMES = (DENSE, LOW_RANK, ROBUST)


def discard(output: Path) -> None:
    """Remove what an earlier attack trained into its folder."""
    for name in (PLAIN, ROBUST):
        shutil.rmtree(output / name, ignore_errors=True)


def trained_victims(
    options: AttackOptions, data: str, images: Images, watcher: Watcher
) -> list[Victim]:
    """A dense perceptron, a low-rank one, and one whose layers have a bounded norm.

    Raises Interrupted, naming the folder of the attack.
    """
    norm = DEFAULT_NORM if options.max_norm is None else options.max_norm
    runs = (
        TrainOptions(data=data, output=options.output / PLAIN),
        TrainOptions(data=data, output=options.output / ROBUST, dense=False, max_norm=norm),
    )
    try:
        for run in runs:
            _train(run, options, watcher)
    except Interrupted as stop:
        raise Interrupted(stop.step, options.output) from stop
    return [victim for run in runs for victim in victims_of_run(run.output, run, images)]


def _train(wanted: TrainOptions, options: AttackOptions, watcher: Watcher) -> None:
    """Train, go on where there is a checkpoint, or find it done."""
    folder = wanted.output
    if options.resume and (folder / METRICS).exists():
        return
    begun = options.resume and checkpoint_in(folder) is not None
    values = wanted.to_json() | {
        "epochs": (options.epochs or DEFAULT_EPOCHS) if options.steps is None else None,
        "steps": options.steps,
        "seed": options.seed,
        "save_every": options.save_every,
        "keep_checkpoints": options.keep_checkpoints,
        "threads": options.threads,
        "resume": begun,
        "overwrite": not begun,
    }
    train_classifier(TrainOptions.from_json(values), watcher)
