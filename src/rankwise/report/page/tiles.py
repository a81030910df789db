"""The singular values of each layer: small charts with the same axes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rankwise.report.history import Line
from rankwise.report.page.layers import Layer
from rankwise.report.page.scale import Scale, logarithmic
from rankwise.report.page.svg import Markup, line, tag

WIDTH, HEIGHT = 200, 100
TIMES, FEW_TIMES, MANY_LAYERS = 4, 3, 60
MOST_VALUES = 40
LEVELS = {3: (5, 13, 23), 4: (4, 10, 16, 23), 2: (8, 23), 1: (23,)}
"""Colours of the style sheet, from early to late."""
FLOOR = 1e-5
"""Of a value, relative to the largest of all layers."""
START_FLOOR = 1e-2
"""As `FLOOR`, at the first step: adapters begin at zero, and that is not what the axis is for."""


class Tile(NamedTuple):
    """One layer."""

    layer: Layer
    picture: Markup


class Tiles(NamedTuple):
    """All layers, and what their axes are."""

    tiles: list[Tile]
    steps: list[tuple[int, int]]
    """Steps that are drawn, and the level of their colour."""
    low: str
    high: str
    widest: int
    numbers: dict[str, Any]


def spectra_of(layers: Sequence[Layer], lines: Sequence[Line]) -> Tiles | None:
    """None if no spectrum was recorded in which something is."""
    told = [line for line in lines if line.get("spectra") and _top(line) > 0]
    if not told:
        return None
    chosen = _chosen(told, FEW_TIMES if len(layers) > MANY_LAYERS else TIMES)
    top = max(map(_top, chosen))
    values = [s for sigma in chosen[0]["spectra"] for s in sigma if s > START_FLOOR * top]
    values += [s for x in chosen[1:] for sigma in x["spectra"] for s in sigma if s > FLOOR * top]
    up = logarithmic(values)
    widest = max(len(sigma) for x in chosen for sigma in x["spectra"])
    levels = LEVELS[len(chosen)]
    tiles = [
        Tile(layer, _picture([x["spectra"][i] for x in chosen], levels, up, widest))
        for i, layer in enumerate(layers)
    ]
    numbers = {
        "steps": [x["step"] for x in chosen],
        "low": up.low,
        "high": up.high,
        "widest": widest,
        "rows": [
            {"name": layer.name, "sigma": chosen[-1]["spectra"][i]}
            for i, layer in enumerate(layers)
        ],
    }
    steps = list(zip((x["step"] for x in chosen), levels, strict=True))
    return Tiles(tiles, steps, f"{min(values):.2g}", f"{max(values):.2g}", widest, numbers)


def _top(line: Line) -> float:
    return max((s for sigma in line["spectra"] for s in sigma), default=0.0)


def _chosen(told: Sequence[Line], count: int) -> list[Line]:
    """The first, the last, and some between, at equal distances."""
    count = min(count, len(told))
    places = {round(i * (len(told) - 1) / max(1, count - 1)) for i in range(count - 1)}
    return [told[i] for i in sorted(places | {len(told) - 1})]


def _picture(
    spectra: Sequence[Sequence[float]], levels: Sequence[int], up: Scale, widest: int
) -> Markup:
    across = Scale(0.5, widest + 0.5)
    decades = [t for t in up.ticks(4) if up.low < t < up.high]
    grid = "".join(line([(0, y), (WIDTH, y)]) for y in (_y(up, t) for t in decades))
    paths = [
        tag("path", d=_curve(sigma, across, up), class_=f"sigma s{level}")
        for sigma, level in zip(spectra, levels, strict=True)
    ]
    return tag(
        "svg", tag("path", d=grid, class_="grid"), *paths, viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none", aria_hidden="true",
    )  # fmt: skip


def _curve(sigma: Sequence[float], across: Scale, up: Scale) -> str:
    """What falls below the axis ends the curve; of a long spectrum some values stand for all."""
    count = len(sigma)
    every = max(1, -(-count // MOST_VALUES))
    places = sorted({*range(0, count, every), count - 1})
    points = [(WIDTH * across.at(i + 1), _y(up, sigma[i])) for i in places if sigma[i] >= up.low]
    return line(points)


def _y(up: Scale, value: float) -> float:
    return HEIGHT * (1 - up.at(value))
