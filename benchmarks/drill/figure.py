"""The drill in a picture: where kills fell, and what was being written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(kills: dict[str, Any], steps: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=130)
    where, what = figure.subplots(1, 2, width_ratios=(3, 2))
    _where(where, kills["steps"], steps)
    _what(what, kills["saving"], kills["kills"])
    figure.savefig(path)


def _where(axes: Any, killed: Sequence[int], steps: int) -> None:
    axes.hist(killed, bins=range(steps + 2), color="#0072b2", align="left")
    axes.set_xlabel("newest checkpoint at the kill, steps")
    axes.set_ylabel("kills")
    axes.spines[["top", "right"]].set_visible(False)


def _what(axes: Any, saving: dict[str, int], kills: int) -> None:
    counts = dict(sorted(saving.items(), key=lambda item: item[1]))
    counts |= {"between two files": kills - sum(counts.values())}
    bars = axes.barh(list(counts), list(counts.values()), color="#009e73")
    axes.bar_label(bars, padding=2, fontsize=8)
    axes.set_xlabel("kills, by what was being written")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
