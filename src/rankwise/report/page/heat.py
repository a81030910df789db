"""The ranks of all layers over the steps: a row a layer, coloured by rank."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from math import log
from typing import Any, NamedTuple

from rankwise.report.page.layers import Course, Layer, Rank, share, size, written
from rankwise.report.page.scale import Scale
from rankwise.report.page.svg import Markup, box, tag

WIDTH = 1000
LEVELS = 24
"""Colours of the style sheet."""
HIGH_ROW, ROW, LOW_ROW, GAP, HEAD = 26, 17, 7, 3, 22
MANY = 90
"""Layers, from which on rows are low and have no names of their own."""
FEW = 8
"""Layers, up to which rows are high."""
MOST_SPANS = 24000
WIDE = 12.0
"""Ratio of ranks from which on colours follow their logarithm."""


class Row(NamedTuple):
    """What is written beside a row, in pixels from the top."""

    top: int
    height: int
    layer: Layer
    start: str
    end: str
    changed: bool


class Heat(NamedTuple):
    """The map for the page."""

    height: int
    heads: list[tuple[int, str]]
    rows: list[Row]
    named: bool
    widths: tuple[int, int]
    """Characters of the longest name, and of the longest pair of ranks."""
    pictures: dict[str, Markup]
    """Coloured by "rank", and by "share" of the full rank where that is known."""
    legends: dict[str, tuple[str, str]]
    """Least and largest."""
    ticks: list[tuple[float, int]]
    numbers: dict[str, Any]


def heat_map(layers: Sequence[Layer], first: int, last: int) -> Heat:
    """Of steps `first` to `last`."""
    named = len(layers) <= MANY
    height, heads, rows = _placed(layers, _row_height(len(layers)))
    courses = [_coarse(layer.course, first, last, len(layers)) for layer in layers]
    along = Scale(first, last + 1)
    colourings: dict[str, Callable[[Layer, Rank], float]] = {"rank": lambda _, rank: size(rank)}
    if all(layer.full for layer in layers):
        colourings["share"] = share
    pictures, legends = {}, {}
    for name, value in colourings.items():
        found = [value(x, rank) for x, own in zip(layers, courses, strict=True) for _, rank in own]
        low, high = min(found), max(found)
        pictures[name] = _picture(rows, courses, value, _levels(low, high), along, height)
        form = "{:.0f}" if name == "rank" else "{:.1%}"
        legends[name] = (form.format(low), form.format(high))
    ticks = [(100 * along.at(t), int(t)) for t in along.ticks(6) if t == int(t)]
    numbers = {"low": first, "high": last + 1, "rows": list(map(_numbers, rows, courses))}
    return Heat(height, heads, rows, named, _widths(rows), pictures, legends, ticks, numbers)


def _row_height(layers: int) -> int:
    if layers <= FEW:
        return HIGH_ROW
    return ROW if layers <= MANY else LOW_ROW


def _numbers(row: Row, course: Course) -> dict[str, Any]:
    return {
        "name": row.layer.name,
        "top": row.top,
        "height": row.height,
        "shape": written(row.layer.shape) if row.layer.shape else None,
        "steps": [step for step, _ in course],
        "ranks": [rank if isinstance(rank, int) else written(rank) for _, rank in course],
    }


def _placed(layers: Sequence[Layer], row: int) -> tuple[int, list[tuple[int, str]], list[Row]]:
    """Rows below each other; blocks begin with a head, or without names with a gap."""
    top = 0
    heads: list[tuple[int, str]] = []
    rows: list[Row] = []
    for block, members in groupby(layers, key=lambda layer: layer.block):
        if block and row != LOW_ROW:
            heads.append((top, block))
            top += HEAD
        elif rows:
            top += GAP
        if block and row == LOW_ROW:
            heads.append((top, block))
        for layer in members:
            ends = written(layer.start), written(layer.end)
            rows.append(Row(top, row, layer, *ends, changed=layer.start != layer.end))
            top += row
        top += GAP
    return top, heads, rows


def _widths(rows: Sequence[Row]) -> tuple[int, int]:
    ends = [len(row.end) + (len(row.start) + 3 if row.changed else 0) for row in rows]
    return max(len(row.layer.part) for row in rows), max(ends)


def _coarse(course: Course, first: int, last: int, layers: int) -> Course:
    """At most so many changes that all layers together stay below a bound."""
    most = max(8, MOST_SPANS // layers)
    if len(course) <= most:
        return course
    width = (last + 1 - first) / most
    latest = {int((step - first) / width): (step, rank) for step, rank in course[1:-1]}
    kept = [course[0], *latest.values(), course[-1]]
    return [entry for i, entry in enumerate(kept) if i == 0 or entry[1] != kept[i - 1][1]]


def _levels(low: float, high: float) -> Callable[[float], int]:
    if high == low:
        return lambda value: LEVELS // 2
    if low > 0 and high / low > WIDE:
        return lambda value: round((LEVELS - 1) * log(value / low) / log(high / low))
    return lambda value: round((LEVELS - 1) * (value - low) / (high - low))


def _picture(
    rows: Sequence[Row],
    courses: Sequence[Course],
    value: Callable[[Layer, Rank], float],
    level: Callable[[float], int],
    along: Scale,
    height: int,
) -> Markup:
    """A path a colour: small, however many steps there are."""
    boxes: dict[int, list[str]] = defaultdict(list)
    for row, course in zip(rows, courses, strict=True):
        ends = [*(step for step, _ in course[1:]), along.high]
        for (start, rank), end in zip(course, ends, strict=True):
            x, width = WIDTH * along.at(start), WIDTH * (along.at(end) - along.at(start))
            boxes[level(value(row.layer, rank))].append(box(x, row.top, width, row.height - 1))
    paths = [tag("path", d="".join(d), class_=f"l{own}") for own, d in sorted(boxes.items())]
    return tag(
        "svg", *paths, viewBox=f"0 0 {WIDTH} {height}", preserveAspectRatio="none",
        aria_hidden="true", shape_rendering="crispEdges",
    )  # fmt: skip
