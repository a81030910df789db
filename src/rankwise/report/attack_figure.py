"""The picture of an attack: accuracy over its size, model by model, and their spectra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.report.canvas import canvas, write_png
from rankwise.report.figure import BLUE, GREY, ORANGE, plain

COLOURS = (ORANGE, GREY, BLUE, "#009e73", "#cc79a7", "#8c564b", "#56b4e9")
MARKERS = "osD^vP*"
MOST_LAYERS = 24
MOST_NAMES = 5
"""In a line of the legend."""


def draw_attacks(metrics: Mapping[str, Any], path: str | Path) -> None:
    """Write a PNG of a run of `rankwise attack`.

    Args:
        metrics: what it writes to `metrics.json`.
        path: of the picture.

    Raises:
        ImportError: without matplotlib.
    """
    models = metrics["models"]
    titles = list(next(iter(models.values()))["attacks"])
    certified = any(m["certified"] for m in models.values())
    count = len(titles) + certified + 1
    columns = min(count, 3 if count > 4 else 2)
    lines = -(-count // columns)
    figure = canvas(4.4 * columns, 3.9 * lines)
    panels: list[Any] = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, title in zip(panels, titles, strict=False):
        curves = {name: m["attacks"][title] for name, m in models.items()}
        _draw_curves(axes, title, curves)
    if certified:
        clean = {name: m["attacks"][titles[0]][0] for name, m in models.items()}
        curves = {n: [clean[n], *(m["certified"] or [])] for n, m in models.items()}
        _draw_curves(panels[len(titles)], "certified, l2", curves)
    _draw_conditions(panels[count - 1], models)
    for axes in panels[count:]:
        axes.remove()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper left", ncols=min(len(names), MOST_NAMES), frameon=False
    )
    write_png(figure, path)


def _draw_curves(axes: Any, title: str, curves: Mapping[str, Any]) -> None:
    for i, (name, pairs) in enumerate(curves.items()):
        eps, accuracy = zip(*pairs, strict=True)
        percent = [100 * a for a in accuracy]
        axes.plot(eps, percent, label=name, linewidth=1.6, **_style(i))
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.set_xlabel("eps (pixels are from 0 to 1)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(title, loc="left", fontweight="bold")
    plain(axes)


def _style(i: int) -> dict[str, Any]:
    """Colours come round sooner than pairs of colour and marker do."""
    marker = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
    colour = COLOURS[i % len(COLOURS)]
    return {"marker": marker, "color": colour, "markersize": 5}


def _draw_conditions(axes: Any, models: Mapping[str, Any]) -> None:
    """Layers from the input to the output, by name where all networks have the same ones.

    Infinite numbers, which are None, are left out.
    """
    for i, (name, m) in enumerate(models.items()):
        numbers = list(m["condition"].values())[:MOST_LAYERS]
        places = [j for j, number in enumerate(numbers) if number is not None]
        values = [numbers[j] for j in places]
        axes.plot(places, values, label=name, linewidth=1, **_style(i))
    layers = {tuple(m["condition"]) for m in models.values()}
    if len(layers) == 1:
        names = layers.pop()[:MOST_LAYERS]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    longest = max(len(m["condition"]) for m in models.values())
    left_out = f", the first {MOST_LAYERS} layers" if longest > MOST_LAYERS else ""
    if any(n is not None for m in models.values() for n in m["condition"].values()):
        axes.set_yscale("log")
    axes.set_ylabel("condition number")
    axes.set_xlabel("layer")
    axes.set_title(f"spectra{left_out}", loc="left", fontweight="bold")
    plain(axes)
