"""Layers of a network: their names in parts, their ranks over the steps."""

import re
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from rankwise.report.history import Line
from rankwise.report.page.run import Network, Run

Rank = int | list[int]
Course = list[tuple[int, Rank]]
"""Steps at which a rank was another than before, and the rank."""


class Layer(NamedTuple):
    """A low-rank layer over a training."""

    name: str
    block: str
    """With its number, e.g. "layer 3"; "" for a layer of no block."""
    part: str
    """What it is in its block."""
    shape: list[int]
    """Rows, columns and places of a kernel; empty where that is not known."""
    full: list[int]
    """Largest ranks that it can have; empty where that is not known."""
    course: Course

    @property
    def start(self) -> Rank:
        return self.course[0][1]

    @property
    def end(self) -> Rank:
        return self.course[-1][1]


def layers_of(run: Run, network: Network) -> list[Layer]:
    """In the order of the network; empty if no ranks by layer were recorded."""
    told = [(line["step"], line["ranks"]) for line in network.lines if "ranks" in line]
    if not told or not told[0][1]:
        return []
    described = network.about.get("layers") or []
    names = [layer["name"] for layer in described] or _names(network.lines, len(told[0][1]))
    full = [layer["full"] for layer in described] or [[] for _ in names]
    shapes = [[*x["shape"], *(x["kernel"] or [])] for x in described] or [[] for _ in names]
    return [
        Layer(name, *split(name), shape=shapes[i], full=full[i], course=_course(told, i))
        for i, name in enumerate(names)
    ]


def split(name: str) -> tuple[str, str]:
    """Block and part: `encoder.layer.3.output.dense` is "layer 3" and "output.dense"."""
    match = re.search(r"(?:^|\.)([^.\d][^.]*)\.(\d+)\.(.+)$", name) or re.search(
        r"(?:^|\.)(\d+)\.(.+)$", name
    )
    if match is None:
        return "", name or "model"
    *block, part = match.groups()
    return " ".join(block), part


def written(rank: Rank) -> str:
    """`8`, or `20 x 12` of a kernel that has two."""
    return " \u00d7 ".join(map(str, rank)) if isinstance(rank, list) else str(rank)


def size(rank: Rank) -> float:
    """Of two ranks the geometric mean."""
    return prod(rank) ** (1 / len(rank)) if isinstance(rank, list) else float(rank)


def share(layer: Layer, rank: Rank) -> float:
    """Of the full rank, in (0, 1]; 0 where that is not known."""
    return size(rank) / size(layer.full) if layer.full else 0.0


def at_full(layer: Layer) -> bool:
    """Whether it ends at the largest rank that it can have."""
    end = layer.end if isinstance(layer.end, list) else [layer.end]
    return bool(layer.full) and any(r >= f for r, f in zip(end, layer.full, strict=True))


def _names(lines: Sequence[Line], count: int) -> list[str]:
    told: list[str] = next((list(x["condition"]) for x in lines if "condition" in x), [])
    return told if len(told) == count else [f"layer {i + 1}" for i in range(count)]


def _course(told: Sequence[tuple[int, list[Any]]], i: int) -> Course:
    course: Course = []
    for step, ranks in told:
        if not course or course[-1][1] != ranks[i]:
            course.append((step, ranks[i]))
    return course
