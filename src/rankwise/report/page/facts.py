"""What a run says of itself in a few numbers, and in one sentence."""

import statistics
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

from rankwise.report.page.course import column
from rankwise.report.page.run import Network, Run, number_at

WITHIN = ("steps", "removed", "seconds")
"""What is written below another number, not on a card of its own."""
LEAST_REMOVED = 0.0005
"""Share of parameters that is worth a word."""
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
    return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB"


def duration(value: float) -> str:
    """`3 ms`, `1.25 s`, `4 min 10 s`, `2 h 5 min`."""
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min {seconds} s"


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
        accuracy=first("accuracy", "low_rank.accuracy", "after.accuracy"),
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


class Card(NamedTuple):
    """A number that is to be seen first."""

    label: str
    value: str
    note: str = ""


def cards_of(run: Run) -> list[Card]:
    """The headline numbers, those that the run tells."""
    if run.command == "attack":
        return _attacked(run)
    f, dense = facts_of(run), number_at(run.metrics, "dense", "accuracy")
    before = number_at(run.metrics, "before", "loss")
    notes = {
        "accuracy": f"dense twin {percent(dense)}" if dense is not None else "on held-out rows",
        "loss": f"before {loss(before)}" if before is not None else "on held-out rows",
        "train_loss": f"mean of the last {min(TAIL, f.steps or TAIL)} steps",
        "parameters_end": _removed(f),
        "seconds_per_step": f"{f.steps:,} steps in {duration(f.seconds)}" if f.seconds else "",
        "skipped": "for a non-finite gradient" if f.skipped else "",
    }
    values = f._asdict()
    shown = [m for m in MEASURES if m.fact not in WITHIN and values[m.fact] is not None]
    cards = [Card(m.label, m.form(values[m.fact]), notes.get(m.fact, "")) for m in shown]
    return cards + _own(run)


def _removed(f: Facts) -> str:
    if not f.parameters_start:
        return ""
    removed = f", {f.removed:.1%} removed" if f.removed and f.removed >= LEAST_REMOVED else ""
    return f"from {count(f.parameters_start)}{removed}"


def _attacked(run: Run) -> list[Card]:
    """Of each model the accuracy, and what the last attack leaves of it."""
    cards = []
    for name, m in ((run.metrics or {}).get("models") or {}).items():
        title, pairs = list(m["attacks"].items())[-1]
        eps, accuracy = pairs[-1]
        left = f"{accuracy:.1%} left by {title} at {eps:g}"
        cards.append(Card(name, percent(m["accuracy"]), left))
    return cards


def _own(run: Run) -> list[Card]:
    """Numbers that a loop of somebody's own gave to its end."""
    if run.command is not None or run.metrics is None:
        return []
    known = {"accuracy", "eval_loss", "train_loss", "peak_memory_bytes", "skipped_steps"}
    numbers = {k: number_at(run.metrics, k) for k in run.metrics if k not in known}
    return [Card(k.replace("_", " "), loss(v)) for k, v in numbers.items() if v is not None][:4]


def sentence(run: Run) -> str:
    """What was done."""
    o, m = run.options, run.metrics or {}
    network = main_network(run)
    steps = f"{network.lines[-1]['step']:,} steps" if network else "no steps"
    if run.command == "finetune":
        model = o.get("model") or "all-MiniLM-L6-v2"
        data = o.get("data") or "the built-in movie reviews"
        return (
            f"{model}, fine-tuned on {data} in {steps} of {o.get('batch_size')} rows, with "
            f"low-rank adapters that start at rank {o.get('rank')}."
        )
    if run.command == "train":
        twin = ", and its dense twin beside it" if len(run.networks) > 1 else ""
        return (
            f"A network \u201c{o.get('model')}\u201d, trained from scratch in low rank on "
            f"{o.get('data')} in {steps} of {o.get('batch_size')} images{twin}."
        )
    if run.command == "compress":
        keep = number_at(m, "keep") or o.get("keep")
        share = "" if keep is None else f" to {keep:.0%} of its layers' weights"
        return (
            f"{m.get('subject') or o.get('model') or 'A model'}, cut{share} and healed in {steps}."
        )
    if run.command == "attack":
        names = ", ".join(m.get("models", {}))
        return (
            f"Classifiers{f' ({names})' if names else ''}, attacked by "
            f"{', '.join(o.get('attacks', []))} on {m.get('rows', o.get('rows'))} test images."
        )
    about = network.about if network else {}
    layers, rule = about.get("layers"), about.get("optimizer", {}).get("rule")
    if not layers:
        return f"A training of {steps}."
    return f"{len(layers)} low-rank layers, trained{f' by {rule}' if rule else ''} in {steps}."
