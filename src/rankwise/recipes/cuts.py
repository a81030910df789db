"""Where a model is cut: by what a calibration says, or alike in all layers; and the curve of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from rankwise.compress.calibration import Calibration, calibrate
from rankwise.compress.trial import cut_weights, least_keep
from rankwise.recipes.compress_options import CompressOptions
from rankwise.recipes.examples import batch_at
from rankwise.recipes.history import Watcher
from rankwise.recipes.subject import Batch, Subject, to_device
from rankwise.surgery.init import Init, TruncatedSVD

KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


class Cut(NamedTuple):
    """Ranks, and what was learned of the model on the way."""

    keep: float
    """Share of what all layers hold (or multiply) that was to be kept."""
    ranks: dict[str, int]
    shapes: dict[str, tuple[int, int]]
    """(m, n) of all layers that could be low rank."""
    spectra: dict[str, list[float]]
    """Singular values in the metric of the loss, of all these layers."""
    curve: dict[str, dict[str, float]]
    """Loss by way of cutting ("plain", "calibrated") and share kept."""
    original: dict[str, float]
    """What the original measures."""
    measured: dict[str, float]
    """What the cut model measures before healing."""
    weights: str = ""
    """Fingerprint of the original's weights."""

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Cut":
        shapes = {name: tuple(shape) for name, shape in values["shapes"].items()}
        return cls(**{**values, "shapes": shapes})


def make_cut(
    subject: Subject, model: nn.Module, options: CompressOptions, watcher: Watcher
) -> tuple[Cut, Init]:
    """Calibrate, share out, and measure; the model is as it was."""
    batches = calibration_batches(subject, options)
    select = list(options.select) or subject.select
    torch.manual_seed(options.seed)
    found = calibrate(
        model,
        (to_device(batch, model) for batch in batches),
        subject.sampled_loss,
        select=select,
        report=watcher.say,
    )
    shapes = {name: layer.shape for name, layer in found.layers.items()}
    price = found.places if options.products else None
    init: Init = TruncatedSVD() if options.plain else found

    def ranks_of(keep: float) -> dict[str, int]:
        return uniform_ranks(shapes, keep) if options.plain else found.ranks(keep, price=price)

    keep = options.share
    if options.tolerance is not None:
        watcher.say("looking for the least share")
        least = 0.0 if options.plain else found.least_share(price)
        keep = _share_within(subject, model, batches, ranks_of, init, options.tolerance, least)
    watcher.say("measuring the original")
    cut = Cut(
        keep=keep,
        ranks=ranks_of(keep),
        shapes=shapes,
        spectra={name: layer.sigma.tolist() for name, layer in found.layers.items()},
        curve=_curve(subject, model, found, shapes, watcher) if options.curve else {},
        original=subject.measure(model),
        measured={},
    )
    if not cut.ranks:
        raise ValueError(f"--keep {keep:g}: all layers are worth more whole; keep less")
    return cut, init


def calibration_batches(subject: Subject, options: CompressOptions) -> list[Batch]:
    """`--calibration` rows in batches, the first of the order that `--seed` gives."""
    size = min(options.batch_size, subject.rows)
    count = max(1, min(options.calibration, subject.rows) // size)
    steps = [
        batch_at(step, count=subject.rows, batch_size=size, seed=options.seed)
        for step in range(count)
    ]
    return [subject.batch(rows) for rows in steps]


def uniform_ranks(shapes: dict[str, tuple[int, int]], keep: float) -> dict[str, int]:
    """The rank of each layer that keeps that share of its own parameters, at least 1."""
    return {name: max(1, int(keep * m * n / (m + n))) for name, (m, n) in shapes.items()}


def _curve(
    subject: Subject,
    model: nn.Module,
    found: Calibration,
    shapes: dict[str, tuple[int, int]],
    watcher: Watcher,
) -> dict[str, dict[str, float]]:
    curve: dict[str, dict[str, float]] = {"plain": {}, "calibrated": {}}
    for keep in (keep for keep in KEEPS if keep >= found.least_share()):
        watcher.say(f"measuring at {keep:.0%}")
        ways: Sequence[tuple[str, dict[str, int], Init]] = (
            ("plain", uniform_ranks(shapes, keep), TruncatedSVD()),
            ("calibrated", found.ranks(keep), found),
        )
        for name, ranks, init in ways:
            with cut_weights(model, ranks, init):
                curve[name][str(keep)] = subject.measure(model, subject.curve_rows)["loss"]
    return curve


@torch.no_grad()
def _share_within(
    subject: Subject,
    model: nn.Module,
    batches: list[Batch],
    ranks_of: Callable[[float], dict[str, int]],
    init: Init,
    tolerance: float,
    least: float,
) -> float:
    """The least share at which the calibration rows lose no more than that."""
    model.eval()
    references = [subject.reference(model, to_device(batch, model)) for batch in batches]

    def loss() -> float:
        total = 0.0
        for batch, reference in zip(batches, references, strict=True):
            batch = to_device(batch, model)
            total += float(subject.loss(subject.output(model, batch), reference, batch))
        return total / len(batches)

    def at(keep: float) -> float:
        with cut_weights(model, ranks_of(keep), init):
            return loss()

    return least_keep(at, most=subject.limit(loss(), tolerance), least=least)
