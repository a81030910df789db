"""Four pictures over the steps: memory, bases, the loss with ranks, and what rounding moves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SINGLE, DOUBLE, GREY = "#0072b2", "#d55e00", "#999999"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of the parts of `soak.py`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained", dpi=130)
    (memory, bases), (losses, drift) = figure.subplots(2, 2, sharex=True)
    _memory(memory, results["float32"]["samples"])
    _bases(bases, results)
    _losses(losses, results)
    _drift(drift, results)
    for axes in (losses, drift):
        axes.set_xlabel("step")
    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
    figure.savefig(path)


def _column(samples: list[dict[str, float]], what: str) -> tuple[list[float], list[float]]:
    return [s["step"] for s in samples], [s[what] for s in samples]


def _memory(axes: Any, samples: list[dict[str, float]]) -> None:
    steps, resident = _column(samples, "resident_bytes")
    axes.plot(steps, [b / 2**20 for b in resident], color=SINGLE)
    axes.set_ylim(0)
    axes.set_ylabel("resident memory, MiB", color=SINGLE)
    factors = axes.twinx()
    steps, held = _column(samples, "factor_bytes")
    factors.plot(steps, [b / 2**10 for b in held], color=GREY, linewidth=1)
    factors.set_ylim(0)
    factors.set_ylabel("factors after a cut, KiB", color=GREY)
    axes.set_title("memory of the float32 run", fontsize=10)


def _bases(axes: Any, results: Mapping[str, Any]) -> None:
    for name, colour in (("float32", SINGLE), ("float64", DOUBLE)):
        axes.plot(*_column(results[name]["samples"], "defect"), color=colour, label=name)
    axes.set_yscale("log")
    axes.set_title(r"max $|Q^T Q - I|$ over all bases", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="center right")


def _losses(axes: Any, results: Mapping[str, Any]) -> None:
    double = _column(results["float64"]["samples"], "loss")
    axes.plot(*double, color=DOUBLE, linewidth=3, alpha=0.5, label="float64")
    axes.plot(*_column(results["float32"]["samples"], "loss"), color=SINGLE, linewidth=1,
              label="float32, bfloat16 autocast")  # fmt: skip
    axes.set_ylim(0)
    axes.set_ylabel("training loss")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    samples = results["float32"]["samples"]
    ranks = axes.twinx()
    steps, low = _column(samples, "least_rank")
    ranks.fill_between(steps, low, _column(samples, "largest_rank")[1], color=GREY, alpha=0.4,
                       linewidth=0)  # fmt: skip
    ranks.set_ylim(0)
    ranks.set_ylabel("sum of ranks, least to largest", color=GREY)
    axes.set_title("loss, and ranks between two samples", fontsize=10)


def _drift(axes: Any, results: Mapping[str, Any]) -> None:
    axes.plot(*_column(results["still"]["samples"], "drift"), color=GREY,
              label=r"rate 0: $\|W - W_0\| / \|W_0\|$")  # fmt: skip
    axes.plot(*_column(results["twins"]["samples"], "gap"), color=SINGLE,
              label=r"twins: $\|W_{32} - W_{64}\| / \|W_{64}\|$")  # fmt: skip
    axes.set_yscale("log")
    axes.set_title("what rounding moves", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
