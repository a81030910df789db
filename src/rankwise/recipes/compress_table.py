"""A compressed model beside its original, as a table."""

from collections.abc import Mapping
from typing import Any

SIZES = (
    ("parameters", ("parameters",), ",.0f", 1.0),
    ("FLOPs of one row", ("flops",), ",.0f", 1.0),
    ("weights, MB", ("bytes",), ",.2f", 1e-6),
    ("latency at batch 1, ms", ("latency", "1"), ".2f", 1e3),
    ("latency at batch 32, ms", ("latency", "32"), ".2f", 1e3),
)
STAGES = ("before", "cut", "after")


def table_of(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the original, the cut model, the healed one, and the ratio of the ends."""
    header = ["", "original", "cut", "healed", "change"]
    known = {path[0] for _, path, _, _ in SIZES}
    rows = []
    for name, before in metrics["before"].items():
        if name not in known:
            values = [metrics[stage][name] for stage in STAGES]
            change = f"{metrics['after'][name] - before:+.4f}"
            rows.append([name, *(f"{value:.4f}" for value in values), change])
    for name, path, form, factor in SIZES:
        before, after = (factor * _at(metrics[stage], path) for stage in ("before", "after"))
        rows.append(
            [name, format(before, form), "", format(after, form), f"x {after / before:.3f}"]
        )
    return header, rows


def _at(measures: Any, path: tuple[str, ...]) -> float:
    for key in path:
        measures = measures[key]
    return float(measures)
