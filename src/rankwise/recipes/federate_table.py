"""What the rounds of each contender came to, and the table of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.recipes.federate_contenders import CONTENDERS
from rankwise.report.history import Line

REFERENCE = "fedavg"
"""The contender whose final accuracy the others are to reach, and whose bytes they are held to."""

Measures = dict[str, Any]


def results_of(histories: Mapping[str, Sequence[Line]]) -> Measures:
    """By contender: `accuracy`, `loss` of the last round, `bytes`, and when FedAvg was reached."""
    target = histories[REFERENCE][-1]["accuracy"] if REFERENCE in histories else None
    whole = sum(sent(histories[REFERENCE])) if REFERENCE in histories else None
    results: Measures = {}
    for name, lines in histories.items():
        last, total = lines[-1], sum(sent(lines))
        results[name] = {
            "title": CONTENDERS[name].title,
            **{key: last[key] for key in ("accuracy", "loss", "parameters", "ranks")},
            "bytes_down": sum(line["bytes_down"] for line in lines),
            "bytes_up": sum(line["bytes_up"] for line in lines),
            "bytes": total,
            "share": None if whole is None else total / whole,
            "reached": None if target is None else reached(lines, target),
            "events": sum(len(line["events"]) for line in lines),
            "seconds": sum(line["seconds"] for line in lines),
        }
    return {"target": target, "results": results}


def sent(lines: Sequence[Line]) -> list[int]:
    """Bytes of each round, both ways and of all clients."""
    return [line["bytes_down"] + line["bytes_up"] for line in lines]


def reached(lines: Sequence[Line], accuracy: float) -> dict[str, int] | None:
    """The first round with that accuracy, and the bytes until then; None if there is none."""
    total = 0
    for line, own in zip(lines, sent(lines), strict=True):
        total += own
        if line["accuracy"] >= accuracy:
            return {"round": line["step"], "bytes": total}
    return None


def table_of(metrics: Measures) -> tuple[list[str], list[list[str]]]:
    """Header and rows: contenders side by side, quantities below each other."""
    found = list(metrics["results"].values())
    rows = [
        ["test accuracy, %", *(f"{100 * m['accuracy']:.2f}" for m in found)],
        ["test loss", *(f"{m['loss']:.4f}" for m in found)],
        ["sent in all, MB", *(f"{m['bytes'] / 1e6:,.1f}" for m in found)],
        ["parameters in the end", *(f"{m['parameters']:,}" for m in found)],
        ["ranks", *(" ".join(map(str, m["ranks"].values())) or "-" for m in found)],
        ["answers missing, late or refused", *(str(m["events"]) for m in found)],
        ["seconds", *(f"{m['seconds']:.0f}" for m in found)],
    ]
    if metrics["target"] is not None:
        goal = f"{100 * metrics['target']:.2f} %"
        rows[3:3] = [
            ["of the bytes of FedAvg, %", *(f"{100 * m['share']:.1f}" for m in found)],
            [f"rounds until {goal}", *(cell(m["reached"], "round", 1, "d") for m in found)],
            ["MB until then", *(cell(m["reached"], "bytes", 1e-6, ",.1f") for m in found)],
        ]
    return ["", *(m["title"] for m in found)], rows


def cell(found: Mapping[str, int] | None, key: str, unit: float, form: str) -> str:
    return "-" if found is None else format(found[key] * unit, form)
