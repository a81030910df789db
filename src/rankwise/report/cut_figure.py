"""The picture of a cut: ranks before and after, by kinds of layers."""

from pathlib import Path
from statistics import fmean
from typing import Any

from rankwise.compress.truncation import Cut, Truncation
from rankwise.report.canvas import canvas, write_png
from rankwise.report.figure import BLUE, GREY, plain
from rankwise.surgery.select import collapse


def draw_cut(cut: Truncation, path: str | Path) -> None:
    """Write a PNG with the mean rank of each kind of layer, and the range, before and after.

    Layers that differ by an index are of one kind. Raises ImportError without matplotlib.
    """
    kinds: dict[str, list[Cut]] = {}
    for layer in cut.layers:
        kinds.setdefault(collapse(layer.name), []).append(layer)
    figure = canvas(9, max(2.4, 1.4 + 0.45 * len(kinds)))
    axes: Any = figure.subplots()
    for row, layers in enumerate(kinds.values()):
        for offset, colour, ranks in (
            (-0.19, GREY, [layer.before[0] for layer in layers]),
            (0.19, BLUE, [layer.after[0] for layer in layers]),
        ):
            axes.barh(row + offset, fmean(ranks), 0.34, color=colour)
            axes.plot([min(ranks), max(ranks)], [row + offset] * 2, color="black", linewidth=1)
    axes.set_yticks(range(len(kinds)), [_label(kind, layers) for kind, layers in kinds.items()])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("rank before (grey) and after (blue): mean, and range over layers of the kind")
    before, after = cut.parameters
    axes.set_title(
        f"{before:,} to {after:,} parameters, relative error {cut.error:.1e}",
        loc="left",
        fontweight="bold",
    )
    plain(axes)
    write_png(figure, path)


def _label(kind: str, layers: list[Cut]) -> str:
    return f"{kind} ({len(layers)}x)" if len(layers) > 1 else kind
