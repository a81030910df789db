"""What a run says of itself in a few numbers, and how they are written."""

import statistics
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

from rankwise.report.page.course import column
from rankwise.report.page.run import Network, Run, number_at

NO_BREAK = "\u00a0"
TAIL = 30
"""Last steps of which a final loss is the mean."""


class Facts(NamedTuple):
    """Numbers of a run; None where it does not tell them."""

    accuracy: float | None
    loss: float | None
    """On held-out rows."""
    train_loss: float | None
    """Mean of the last steps."""
    parameters_start: float | None
    parameters_end: float | None
    removed: float | None
    """Share of the parameters that are no more."""
    steps: int | None
    seconds_per_step: float | None
    seconds: float | None
    peak_memory: float | None
    skipped: int | None


class Measure(NamedTuple):
    """How one of the facts is written."""

    fact: str
    label: str
    form: Callable[[float], str]
    best: Callable[[list[float]], float] | None
    """Which one is better, min or max."""


def percent(value: float) -> str:
    return f"{value:.2%}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def loss(value: float) -> str:
    return f"{value:.4g}"


def memory(value: float) -> str:
    text = f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB"
    return text.replace(" ", NO_BREAK)


def duration(value: float) -> str:
    """`3 ms`, `1.25 s`, `4 min 10 s`, `2 h 5 min`, with spaces that do not break."""
    minutes, seconds = divmod(round(value), 60)
    hours, rest = divmod(minutes, 60)
    if value < 1:
        text = f"{1e3 * value:.3g} ms"
    elif value < 59.95:
        text = f"{value:.3g} s"
    else:
        text = f"{hours} h {rest} min" if hours else f"{minutes} min {seconds} s"
    return text.replace(" ", NO_BREAK)


MEASURES = (
    Measure("accuracy", "Accuracy", percent, max),
    Measure("loss", "Loss, held out", loss, min),
    Measure("train_loss", "Training loss", loss, min),
    Measure("parameters_end", "Parameters", count, min),
    Measure("removed", "Removed", percent, max),
    Measure("steps", "Steps", count, None),
    Measure("seconds_per_step", "Time of a step", duration, min),
    Measure("seconds", "Time of training", duration, min),
    Measure("peak_memory", "Peak memory", memory, min),
    Measure("skipped", "Skipped steps", count, min),
)


def facts_of(run: Run) -> Facts:
    """From the metrics, and from the history what they do not tell."""
    metrics = run.metrics
    network = main_network(run)
    lines = network.lines if network else []

    def first(*paths: str) -> float | None:
        found = (number_at(metrics, *path.split(".")) for path in paths)
        return next((f for f in found if f is not None), None)

    sizes = column(lines, "parameters")[1]
    start = first("parameters.start", "dense.parameters", "before.parameters")
    start = sizes[0] if start is None and sizes else start
    end = first("parameters.end", "low_rank.parameters", "after.parameters")
    end = sizes[-1] if end is None and sizes else end
    losses = [y for y in column(lines, "loss")[1][-TAIL:] if isfinite(y)]
    train_loss = first("train_loss", "low_rank.train_loss", "heal_loss")
    seconds = column(lines, "seconds")[1]
    peaks = column(lines, "peak_memory")[1]
    skipped = first("skipped_steps")
    return Facts(
        accuracy=first("accuracy", "eval_accuracy", "low_rank.accuracy", "after.accuracy"),
        loss=first("eval_loss", "low_rank.loss", "after.loss"),
        train_loss=_mean(losses) if train_loss is None else train_loss,
        parameters_start=start,
        parameters_end=end,
        removed=None if not start or end is None or end > start else 1 - end / start,
        steps=lines[-1]["step"] if lines else None,
        seconds_per_step=statistics.median(seconds) if seconds else None,
        seconds=sum(seconds) if seconds else None,
        peak_memory=first("peak_memory_bytes") or (max(peaks) if peaks else None),
        skipped=_skipped(lines) if skipped is None else int(skipped),
    )


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _skipped(lines: list[dict[str, Any]]) -> int | None:
    """None for histories that do not tell them."""
    if not any("memory" in line for line in lines):
        return None
    return max((line.get("skipped", 0) for line in lines), default=0)


def main_network(run: Run) -> Network | None:
    """The one that the run is about: None for an attack, which may have trained several."""
    return next((network for network in run.networks if not network.name), None)
