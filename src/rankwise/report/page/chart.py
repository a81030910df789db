"""A chart of curves: an SVG that stretches to any width, with labels in HTML that do not."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

from rankwise.report.page.course import MOST_POINTS, thinned
from rankwise.report.page.scale import Scale, linear, logarithmic, short
from rankwise.report.page.svg import Markup, joined, line, tag

WIDTH, HEIGHT = 1000, 300
COLOURS = 7
"""Of curves, in the style sheet; then dashes."""
MOST_IN_ALL = 4000
LEAST_POINTS = 60
MAIN = ("plain", "steps")
"""Styles of curves that a legend names."""
TAIL = 0.02
"""Part of the values at either end that a noisy curve may leave outside of the chart."""


class Curve(NamedTuple):
    """Values over x; those not finite are gaps."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0
    style: str = "plain"
    """plain, faint (noise behind a curve), thin or steps: a class of the style sheet."""


class Chart(NamedTuple):
    """Curves with one pair of axes."""

    key: str
    title: str
    note: str
    x: str
    """What is along: "step" or "seconds"."""
    curves: Sequence[Curve]
    log: bool = False
    from_zero: bool = False


class Drawn(NamedTuple):
    """A chart for the page, and its numbers for the reader's pointer."""

    key: str
    title: str
    note: str
    x: str
    picture: Markup
    numbers: dict[str, Any]


def draw(chart: Chart, span: tuple[float, float] | None = None) -> Drawn:
    """All there is of it, thinned to what a page shows; along, `span` or what its curves have."""
    chart = chart._replace(curves=[c for c in chart.curves if any(map(isfinite, c.ys))])
    most = max(LEAST_POINTS, min(MOST_POINTS, MOST_IN_ALL // max(1, len(chart.curves))))
    curves = [_thin(curve, most) for curve in chart.curves]
    across = _horizontal(span or [x for curve in curves for x in (curve.xs[0], curve.xs[-1])])
    up = _vertical(chart)
    paths = [_path(curve, across, up) for curve in curves]
    outside = sum(not 0 <= up.at(y) <= 1 for c in chart.curves for y in c.ys if isfinite(y))
    note = chart.note
    if outside:
        values = "1 value lies" if outside == 1 else f"{outside:,} values lie"
        note = f"{note}; {values} outside of the axis".removeprefix("; ")
    picture = framed(across, up, paths, x_name=chart.x)
    numbers = {
        "x": chart.x,
        "low": across.low,
        "high": across.high,
        "curves": [_numbers(curve) for curve in curves],
    }
    return Drawn(chart.key, chart.title, note, chart.x, picture, numbers)


def legend(charts: Sequence[Chart]) -> Markup:
    """Names and colours of all curves; empty where there is but one name."""
    found = [(c.name, c.colour) for chart in charts for c in chart.curves if c.style in MAIN]
    names = dict.fromkeys(found)
    if len(names) < 2:
        return Markup()
    keys = ((name, tag("i", "", class_=f"key c{colour % COLOURS}")) for name, colour in names)
    return joined(tag("span", key, name) for name, key in keys)


def framed(across: Scale, up: Scale, paths: Sequence[str], *, x_name: str) -> Markup:
    """Axes around paths."""
    rows = [(up.at(t), t) for t in up.ticks()]
    columns = [(across.at(t), t) for t in across.ticks(5)]
    grid = "".join(line([(0, y), (WIDTH, y)]) for y in (HEIGHT * (1 - place) for place, _ in rows))
    lines = tag("path", d=grid, class_="grid")
    picture = tag(
        "svg",
        lines,
        *paths,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return joined(
        [
            tag("div", *(_label(t, "top", 1 - at, short) for at, t in rows), class_="ys"),
            tag("div", picture, tag("div", "", class_="cursor"), class_="area"),
            tag("div", *(_label(t, "left", at, short) for at, t in columns), class_="xs"),
            tag("div", x_name, class_="x-name"),
        ]
    )


def _label(value: float, side: str, place: float, form: Callable[[float], str]) -> Markup:
    return tag("span", form(value), style=f"{side}:{100 * place:.2f}%")


def _thin(curve: Curve, most: int) -> Curve:
    kept = thinned(curve.ys, most)
    return curve._replace(xs=[curve.xs[i] for i in kept], ys=[curve.ys[i] for i in kept])


def _horizontal(ends: Sequence[float]) -> Scale:
    """From the first value to the last, with no room beyond."""
    if ends and min(ends) < max(ends):
        return Scale(min(ends), max(ends))
    return linear(ends)


def _vertical(chart: Chart) -> Scale:
    """Noise behind a smooth curve may leave the chart at both ends; what is smooth may not."""
    values: list[float] = []
    for curve in chart.curves:
        finite = sorted(y for y in curve.ys if isfinite(y))
        if curve.style == "faint" and finite:
            cut = int(TAIL * len(finite))
            finite = [finite[cut], finite[-1 - cut]]
        values += finite
    return logarithmic(values) if chart.log else linear(values, from_zero=chart.from_zero)


def _path(curve: Curve, across: Scale, up: Scale) -> Markup:
    points = [
        (WIDTH * across.at(x), HEIGHT * (1 - up.at(y)) if y > 0 or not up.log else float("nan"))
        for x, y in zip(curve.xs, curve.ys, strict=True)
    ]
    dashed = " dashed" if curve.colour >= COLOURS else ""
    kind = f"curve {curve.style} c{curve.colour % COLOURS}{dashed}"
    return tag("path", d=line(points, steps=curve.style == "steps"), class_=kind)


def _numbers(curve: Curve) -> dict[str, Any]:
    return {
        "name": curve.name + (" (each step)" if curve.style == "faint" else ""),
        "colour": curve.colour % COLOURS,
        "xs": [_rounded(x) for x in curve.xs],
        "ys": [_rounded(y) for y in curve.ys],
    }


def _rounded(value: float) -> float | None:
    """Six digits are more than a pointer can tell apart; no NaN in JSON."""
    if not isfinite(value):
        return None
    short_form = float(f"{value:.6g}")
    return int(short_form) if short_form == int(short_form) else short_form
