"""Trained classifiers to attack: from runs of `rankwise train`, or from an import path."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankwise.io.checkpoint import load
from rankwise.recipes.attack_options import DEFAULT_DATA
from rankwise.recipes.folder import METRICS, OPTIONS, is_import_path, read_options
from rankwise.recipes.history import Watcher
from rankwise.recipes.image_subject import load_weights_
from rankwise.recipes.images import Images, read_images
from rankwise.recipes.networks import BUILT_IN, network
from rankwise.recipes.train import MODEL
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.twins import DENSE, twins_for
from rankwise.surgery.shrink import shrink

LOW_RANK = "low rank"


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


def read_subjects(
    subjects: Sequence[str],
    data: str | None,
    output: Path,
    watcher: Watcher,
    *,
    trust_code: bool = False,
) -> Subjects:
    """Run folders and import paths, all for the same images; names differ.

    Only with `trust_code` is a network imported that the files of a run name.

    Raises ValueError, FileNotFoundError, ImportError or TypeError, naming the subject.
    """
    folders = {s: Path(s) for s in subjects if not all(s.partition(":")) or Path(s).is_dir()}
    runs = {s: run_options(folder) for s, folder in folders.items()}
    for subject, run in runs.items():
        if is_import_path(run.model) and not trust_code:
            raise ValueError(
                f"the run in {subject} names the network {run.model}, whose code would run: "
                "--trust-code imports it"
            )
    places = Counter(str(folders[s].resolve()) if s in folders else s for s in subjects)
    if len(places) < len(subjects):
        raise ValueError(f"{places.most_common(1)[0][0]} is given twice; each subject has one name")
    if str(output.resolve()) in places:
        raise ValueError(f"--output {output} is a run to attack; name another folder")
    watcher.say("loading data")
    images = read_images(_agreed_data(runs, data))
    found = [
        (subject, victim)
        for subject in subjects
        for victim in (
            victims_of_run(folders[subject], runs[subject], images)
            if subject in runs
            else [_imported(subject, images)]
        )
    ]
    names = Counter(victim.name for _, victim in found)
    victims = [
        v._replace(name=f"{v.name} ({subject})") if names[v.name] > 1 else v for subject, v in found
    ]
    return Subjects(victims, images)


def _agreed_data(runs: dict[str, TrainOptions], data: str | None) -> str:
    """The one place that all images are in, however it is written."""
    asked = {subject: run.data for subject, run in runs.items()} | (
        {"--data": data} if data else {}
    )
    places = {str(Path(place).resolve()): place for place in asked.values()}
    if len(places) > 1:
        said = ", ".join(f"{place} ({subject})" for subject, place in asked.items())
        raise ValueError(f"subjects must be for the same images, got {said}; attack them apart")
    return next(iter(places.values()), DEFAULT_DATA)


def run_options(folder: Path) -> TrainOptions:
    """Of a finished run of `rankwise train`; else FileNotFoundError or ValueError."""
    if not folder.is_dir():
        if str(folder) in BUILT_IN:
            raise ValueError(
                f"the network {folder} has to be trained first: rankwise train --model {folder}, "
                "and attack its run folder"
            )
        raise FileNotFoundError(
            f"{str(folder)!r} is neither a run folder nor an import path such as "
            "package.module:factory"
        )
    file = folder / OPTIONS
    values = read_options(file) if file.exists() else {}
    if values.keys() - TrainOptions().to_json().keys() or "keep" not in values:
        raise ValueError(f"{folder} holds no run of `rankwise train`")
    if not (folder / METRICS).exists():
        raise ValueError(
            f"the run in {folder} is not finished; rankwise train --resume --output {folder}"
        )
    try:
        run = TrainOptions.from_json(values)
        run.check()
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    return run


def victims_of_run(folder: Path, run: TrainOptions, images: Images) -> list[Victim]:
    """The dense twin, where it was trained, and the low-rank network."""
    twins = twins_for(run, images)
    total = sum(p.numel() for p in twins.dense.parameters())
    found = []
    if run.dense:
        load_weights_(twins.dense, folder / DENSE / MODEL)
        found.append(Victim(DENSE, twins.dense.eval(), total, 0.0))
    load(twins.low_rank, folder / MODEL)
    size = sum(p.numel() for p in shrink(twins.low_rank).parameters())
    own = folder.resolve().name
    alike = run.dense and (run.conditioning() is None or own == DENSE)
    name = LOW_RANK if alike else own
    found.append(Victim(name, twins.low_rank.eval(), size, 1 - size / total))
    return found


def _imported(path: str, images: Images) -> Victim:
    channels, height, _ = images.test.shape[1:]
    facts = {"classes": len(images.classes), "channels": channels, "size": height}
    model = network(path, "subject", **facts, seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    try:
        with torch.no_grad():
            logits = model(images.test[:1].to(device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape, reason = tuple(images.test[:1].shape), str(error).splitlines()[0]
        raise ValueError(f"subject {path} does not take images {shape}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.shape != (1, len(images.classes)):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"subject {path} returns {got} for one image; logits of {len(images.classes)} classes, "
            f"a tensor {(1, len(images.classes))}, are needed"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError(f"subject {path} returns logits that are not finite")
    return Victim(path.rpartition(":")[2], model, sum(p.numel() for p in model.parameters()), None)
