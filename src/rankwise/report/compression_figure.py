"""The picture of a compression: spectra of layers, what is kept of each, loss over size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.report.canvas import canvas, write_png
from rankwise.report.figure import BLUE, GREY, ORANGE, plain, rank_table

GREEN = "#009e73"
WAYS = {"plain": ("truncated SVD, all layers alike", ORANGE), "calibrated": ("calibrated", BLUE)}
FLOOR = 1e-4
"""Of a singular value, relative to the largest of its layer."""
MOST_CELLS = 400


def draw_compression(
    metrics: Mapping[str, Any],
    spectra: Mapping[str, Sequence[float]],
    shapes: Mapping[str, tuple[int, int]],
    path: str | Path,
) -> None:
    """Write a PNG of a run of `rankwise compress`.

    Args:
        metrics: what it writes to `metrics.json`.
        spectra: singular values of each layer, descending, in the metric of the loss.
        shapes: (m, n) of each of these layers.
        path: of the picture.

    Raises:
        ImportError: without matplotlib.
    """
    kept = {name: _kept(metrics["ranks"].get(name), shapes[name]) for name in shapes}
    kinds, blocks, _ = rank_table(dict.fromkeys(shapes, 1))
    figure = canvas(14, max(4.6, 2.2 + 0.3 * len(kinds)))
    axes: Any = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    _draw_spectra(axes[0], spectra, metrics["ranks"], kept)
    _draw_kept(axes[1], metrics["ranks"], kept)
    _draw_curve(axes[2], metrics)
    write_png(figure, path)


def _kept(rank: int | None, shape: tuple[int, int]) -> float:
    """Share of the weights of a layer that its factors hold; 1 for a layer left whole."""
    m, n = shape
    return 1.0 if rank is None else rank * (m + n) / (m * n)


def _draw_spectra(
    axes: Any,
    spectra: Mapping[str, Sequence[float]],
    ranks: Mapping[str, int],
    kept: Mapping[str, float],
) -> None:
    from matplotlib import colormaps

    for name, sigma in spectra.items():
        values = [max(value / max(sigma[0], 1e-30), FLOOR) for value in sigma]
        places = [(i + 1) / len(sigma) for i in range(len(sigma))]
        colour = colormaps["cividis"](kept[name])
        axes.plot(places, values, color=colour, linewidth=0.8, alpha=0.8)
        if name in ranks:
            i = ranks[name] - 1
            axes.plot(places[i], values[i], "o", color=colour, markersize=3.5)
    axes.set_yscale("log")
    axes.set_xlabel("direction, part of all of the layer")
    axes.set_ylabel("singular value, relative to the first")
    axes.set_title("spectra in the metric of the loss", loc="left", fontweight="bold")
    plain(axes)


def _draw_kept(axes: Any, ranks: Mapping[str, int], kept: Mapping[str, float]) -> None:
    kinds, blocks, _ = rank_table(dict.fromkeys(kept, 0))
    shares = _table(kept, kinds, blocks)
    image = axes.imshow(
        [[float("nan") if share is None else 100 * share for share in row] for row in shares],
        aspect="auto", cmap="cividis", vmin=0, vmax=100,
    )  # fmt: skip
    if len(kinds) * len(blocks) <= MOST_CELLS:
        labels = _table({n: ranks.get(n, 0) for n in kept}, kinds, blocks)
        for i, row in enumerate(labels):
            for j, rank in enumerate(row):
                share = shares[i][j]
                if rank is not None and share is not None:
                    axes.text(j, i, str(rank or "all"), ha="center", va="center", fontsize=6.5,
                              color="black" if share > 0.55 else "white")  # fmt: skip
    step = -(-len(blocks) // 24)
    axes.set_xticks(range(0, len(blocks), step), blocks[::step])
    axes.set_yticks(range(len(kinds)), [kind.replace("attention.", "att.") for kind in kinds])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("block")
    axes.set_title("ranks, coloured by the share kept", loc="left", fontweight="bold")
    axes.figure.colorbar(image, ax=axes, label="weights kept, %", shrink=0.8, pad=0.02)


def _table(
    values: Mapping[str, Any], kinds: Sequence[str], blocks: Sequence[str]
) -> list[list[Any]]:
    found_kinds, found_blocks, table = rank_table(values)
    assert (found_kinds, found_blocks) == (list(kinds), list(blocks))
    return table


def _draw_curve(axes: Any, metrics: Mapping[str, Any]) -> None:
    for way, points in metrics["curve"].items():
        label, colour = WAYS[way]
        shares = [100 * float(keep) for keep in points]
        axes.plot(shares, list(points.values()), "o-", color=colour, label=label, markersize=4)
    keep = 100 * metrics["keep"]
    axes.plot(keep, metrics["cut"]["loss"], "s", color=BLUE, markersize=7, label="this cut")
    if metrics["steps"]:
        axes.plot(keep, metrics["after"]["loss"], "D", color=GREEN, markersize=7,
                  label=f"healed, {metrics['steps']} steps")  # fmt: skip
    axes.axhline(metrics["before"]["loss"], color=GREY, linestyle=":", linewidth=1)
    axes.annotate("original", (0.98, metrics["before"]["loss"]), (0, 3), ha="right",
                  xycoords=("axes fraction", "data"), textcoords="offset points",
                  fontsize=8)  # fmt: skip
    axes.invert_xaxis()
    axes.set_xlabel("weights kept, %")
    axes.set_ylabel("loss on held-out rows")
    axes.set_title(f"{metrics['subject']}: loss over size", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=8)
    plain(axes)
