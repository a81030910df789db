"""The course of numbers over a training: cumulated, smoothed, and thinned for a page."""

from collections.abc import Sequence
from itertools import accumulate
from math import isfinite, nan
from typing import Any

from rankwise.report.history import Line

MOST_POINTS = 600

Numbers = Sequence[float]


def column(lines: Sequence[Line], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that tell it; what is not finite is NaN."""
    told = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in told], [_number(value) for _, value in told]


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and isfinite(value) else nan


def seconds_at(lines: Sequence[Line]) -> list[float]:
    """Seconds of training after each step."""
    return list(accumulate(line.get("seconds", 0.0) for line in lines))


def smoothed(values: Numbers, width: int) -> list[float]:
    """Mean of those finite of the `width` values around each; NaN where there are none."""
    sums = list(accumulate((v if isfinite(v) else 0.0 for v in values), initial=0.0))
    counts = list(accumulate((int(isfinite(v)) for v in values), initial=0))
    found = []
    for i in range(len(values)):
        start, end = max(0, i - width // 2), min(len(values), i + (width + 1) // 2)
        count = counts[end] - counts[start]
        found.append((sums[end] - sums[start]) / count if count else nan)
    return found


def smoothing_width(count: int) -> int:
    """Steps in a running mean: a fifteenth of the run, from 5 to 500."""
    return min(500, max(5, count // 15))


def thinned(values: Numbers, most: int = MOST_POINTS) -> list[int]:
    """Indices of at most `most` values: the first, the last, and the extremes of equal parts.

    So the smallest and the largest of all are among them.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    parts = (most - 2) // 2
    kept = {0, count - 1}
    for part in range(parts):
        inside = range(part * count // parts, (part + 1) * count // parts)
        finite = [i for i in inside if isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        else:
            kept.add(inside[0])
    return sorted(kept)
