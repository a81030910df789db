"""What is to be seen of a run first: its numbers, and one sentence."""

from typing import NamedTuple

from rankwise.report.page.facts import (
    MEASURES,
    TAIL,
    Facts,
    count,
    duration,
    facts_of,
    loss,
    main_network,
    percent,
)
from rankwise.report.page.run import Run, number_at

KNOWN = (
    "accuracy", "eval_accuracy", "eval_loss", "train_loss", "peak_memory_bytes", "skipped_steps",
)  # fmt: skip
"""Metrics that have a card of their own."""
WITHIN = ("steps", "removed", "seconds")
"""What is written below another number, not on a card of its own."""
LEAST_REMOVED = 0.0005
"""Share of parameters that is worth a word."""


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
    known = {
        "accuracy",
        "eval_accuracy",
        "eval_loss",
        "train_loss",
        "peak_memory_bytes",
        "skipped_steps",
    }
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
        keep = number_at(m, "keep") or number_at(o, "keep")
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
    layers = about.get("layers")
    rule = (about.get("optimizer", {}).get("rule") or "").partition("(")[0]
    if not layers:
        return f"A training of {steps}."
    return f"{len(layers)} low-rank layers, trained{f' by {rule}' if rule else ''} in {steps}."
