"""Accuracy over compression: rankwise, the methods beside it, and the paper's table."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.recipes.lenet import DENSE_WEIGHTS

COLOURS = {"rankwise": "#0072b2", "two factors": "#d55e00", "SVD": "#009e73", "dense": "#444444"}
GREY = "#999999"
NAMES = {"two factors": "two factors, Adam", "SVD": "dense, then SVD, then as many steps again"}


def draw(
    results: dict[str, dict[float, list[dict[str, Any]]]],
    paper: Sequence[tuple[float, float, float, float]],
    path: Path,
) -> None:
    """Write a PNG; `paper` holds (removed as counted there, removed, accuracy, deviation)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", dpi=130)
    axes: Any = figure.subplots()
    for name, parts in results.items():
        if name == "dense":
            level = statistics.fmean(100 * r["accuracy"] for r in parts[0.0])
            axes.axhline(level, color=COLOURS[name], linestyle=":", linewidth=1)
            axes.annotate("dense", (0.0, level), (2, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", fontsize=9)  # fmt: skip
            continue
        x, y, spread = [], [], []
        for records in parts.values():
            held = statistics.fmean(r["parameters"]["end"] for r in records)
            accuracies = [100 * r["accuracy"] for r in records]
            x.append(100 * (1 - held / DENSE_WEIGHTS))
            y.append(statistics.fmean(accuracies))
            spread.append(statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0)
        axes.errorbar(x, y, spread, color=COLOURS[name], marker="o", capsize=3,
                      label=NAMES.get(name, name))  # fmt: skip
    for index, label in ((1, "paper, as its ranks hold"), (0, "paper, as it counts, r (m + 1)")):
        axes.errorbar(
            [100 * row[index] for row in paper], [row[2] for row in paper],
            [row[3] for row in paper], color=GREY, capsize=2, linewidth=1, label=label,
            **({"marker": "s"} if index else {"marker": "s", "mfc": "white", "linestyle": "--"}),
        )  # fmt: skip
    axes.set_xlabel("weights removed, %")
    axes.set_ylabel("accuracy on 10 000 test images, %")
    axes.set_ylim(93.5, 99.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    figure.savefig(path)
