"""Trained classifiers to attack: from runs, from an import path, or trained here first."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from rankwise.io.checkpoint import load
from rankwise.recipes.attack_options import DEFAULT_DATA, AttackOptions
from rankwise.recipes.folder import METRICS, OPTIONS
from rankwise.recipes.history import Watcher
from rankwise.recipes.image_subject import load_weights_
from rankwise.recipes.images import Images, read_images
from rankwise.recipes.networks import network
from rankwise.recipes.train import MODEL, train_classifier
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.twins import DENSE, twins_for
from rankwise.surgery.shrink import shrink

PLAIN, ROBUST = "low-rank", "robust"
"""Folders of the networks that are trained where none are given."""


class Victim(NamedTuple):
    """A classifier of scaled images, evaluating."""

    name: str
    model: nn.Module
    parameters: int
    """In the form that runs."""
    removed: float | None
    """Share of the parameters that its dense network has more, where there is one."""


class Subjects(NamedTuple):
    """What is attacked, and with which images."""

    victims: list[Victim]
    images: Images


def subjects_for(options: AttackOptions, watcher: Watcher) -> Subjects:
    """As asked; without subjects, three networks that are trained into `options.output`.

    Raises ValueError, FileNotFoundError, ImportError or TypeError, naming the subject.
    """
    if options.subjects:
        return read_subjects(options.subjects, options.data, watcher)
    plain, robust = options.output / PLAIN, options.output / ROBUST
    data = options.data or DEFAULT_DATA
    _trained(options, TrainOptions(data=data, output=plain), watcher)
    shaped = TrainOptions(data=data, output=robust, dense=False, max_norm=options.max_norm)
    _trained(options, shaped, watcher)
    return read_subjects([str(plain), str(robust)], data, watcher)


def _trained(options: AttackOptions, wanted: TrainOptions, watcher: Watcher) -> None:
    """Train, go on, or find it done."""
    folder = wanted.output
    if options.resume and (folder / METRICS).exists():
        return
    begun = options.resume and (folder / OPTIONS).exists()
    values = wanted.to_json() | {
        "epochs": None if options.steps else options.epochs,
        "steps": options.steps,
        "seed": options.seed,
        "save_every": options.save_every,
        "threads": options.threads,
        "resume": begun,
        "overwrite": not begun,
    }
    train_classifier(TrainOptions.from_json(values), watcher)


def read_subjects(subjects: Sequence[str], data: str | None, watcher: Watcher) -> Subjects:
    """Run folders and import paths, all for the same images."""
    runs = {s: run_options(Path(s)) for s in subjects if ":" not in s or Path(s).is_dir()}
    asked = {run.data for run in runs.values()} | ({data} if data else set())
    if len(asked) > 1:
        raise ValueError(
            f"subjects must be for the same images, got {', '.join(sorted(asked))}; attack them in "
            "runs of their own"
        )
    watcher.say("loading data")
    images = read_images(asked.pop() if asked else DEFAULT_DATA)
    victims: list[Victim] = []
    for subject in subjects:
        found = (
            _of_run(Path(subject), runs[subject], images)
            if subject in runs
            else [_imported(subject, images)]
        )
        taken = {victim.name for victim in victims}
        for victim in found:
            name = victim.name
            if name in taken:
                name = f"{name} ({subject})"
            victims.append(victim._replace(name=name))
    return Subjects(victims, images)


def run_options(folder: Path) -> TrainOptions:
    """Of a finished run of `rankwise train`; else FileNotFoundError or ValueError."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{str(folder)!r} is neither a run folder nor an import path such as "
            "package.module:factory"
        )
    file = folder / OPTIONS
    values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if values.keys() - TrainOptions().to_json().keys() or "keep" not in values:
        raise ValueError(f"{folder} holds no run of `rankwise train`")
    if not (folder / METRICS).exists():
        raise ValueError(
            f"the run in {folder} is not finished; rankwise train --resume --output {folder}"
        )
    return TrainOptions.from_json(values)


def _of_run(folder: Path, run: TrainOptions, images: Images) -> list[Victim]:
    """The dense twin, where it was trained, and the low-rank network."""
    twins = twins_for(run, images)
    total = sum(p.numel() for p in twins.dense.parameters())
    found = []
    if run.dense:
        load_weights_(twins.dense, folder / DENSE / MODEL)
        found.append(Victim("dense", twins.dense.eval(), total, 0.0))
    load(twins.low_rank, folder / MODEL)
    size = sum(p.numel() for p in shrink(twins.low_rank).parameters())
    name = folder.name if run.conditioning() or not run.dense else "low rank"
    found.append(Victim(name, twins.low_rank.eval(), size, 1 - size / total))
    return found


def _imported(path: str, images: Images) -> Victim:
    channels, height, _ = images.test.shape[1:]
    facts = {"classes": len(images.classes), "channels": channels, "size": height}
    model = network(path, **facts, seed=0)
    with torch.no_grad():
        logits = model.eval()(images.test[:1].to(_device(model)))
    if logits.shape != (1, len(images.classes)):
        raise ValueError(
            f"{path} returns {tuple(logits.shape)} for one image; logits of {len(images.classes)} "
            "classes are needed"
        )
    return Victim(path.rpartition(":")[2], model, sum(p.numel() for p in model.parameters()), None)


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
