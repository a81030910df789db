"""The picture of a training from scratch: ranks, loss and size over the steps, accuracy."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from rankwise.report.canvas import canvas, write_png
from rankwise.report.figure import BLUE, GREY, ORANGE, plain, running_mean

NAMES = {"low_rank": "low rank", "dense": "dense"}
COLOURS = {"low_rank": BLUE, "dense": ORANGE}
MOST_LABELS = 40
SMOOTH = 50


def draw_training(
    metrics: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
) -> None:
    """Write a PNG of a run of `rankwise train`.

    Args:
        metrics: what it writes to `metrics.json`.
        histories: by network, one mapping a step with `step`, `loss`, `parameters`.
        path: of the picture.

    Raises:
        ImportError: without matplotlib.
    """
    height = max(6.5, 1.5 + 0.3 * min(MOST_LABELS, len(metrics["ranks"])))
    figure = canvas(12.5, height)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_ranks(halves[0].subplots(), metrics)
    loss, size, condition = halves[1].subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    _draw_loss(loss, metrics, histories)
    _draw_size(size, metrics, histories)
    _draw_conditions(condition, histories["low_rank"])
    write_png(figure, path)


def _draw_ranks(axes: Any, metrics: Mapping[str, Any]) -> None:
    names = list(metrics["ranks"])
    places = range(len(names))
    start = [metrics["start"][name] for name in names]
    end = [metrics["ranks"][name] for name in names]
    axes.barh(places, start, color=GREY, alpha=0.35, label="at the start")
    axes.barh(places, end, color=BLUE, height=0.5, label="in the end")
    if len(names) <= MOST_LABELS:
        for place, rank in zip(places, end, strict=True):
            axes.annotate(str(rank), (rank, place), (3, 0), textcoords="offset points",
                          va="center", fontsize=9)  # fmt: skip
    step = -(-len(names) // MOST_LABELS)
    labels = [f"{n}  {'x'.join(map(str, metrics['shapes'][n]))}" for n in names]
    axes.set_yticks(places[::step], labels[::step])
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("rank")
    axes.set_title("rank of each layer", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    plain(axes)


def _draw_loss(
    axes: Any,
    metrics: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    from matplotlib.ticker import LogLocator

    told = []
    for name, history in histories.items():
        steps = [line["step"] for line in history]
        losses = running_mean([line["loss"] for line in history], SMOOTH)
        axes.plot(steps, losses, color=COLOURS[name], linewidth=1.3, label=NAMES[name])
        axes.plot(steps[-1], metrics[name]["loss"], "D", color=COLOURS[name], markersize=6)
        told.append(f"{NAMES[name]} {metrics[name]['accuracy']:.2%}")
    axes.plot([], [], "D", color=GREY, markersize=6, label="on test images")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("loss, smoothed")
    axes.set_title(f"test accuracy: {', '.join(told)}", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    plain(axes)


def _draw_size(
    axes: Any,
    metrics: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    history = histories["low_rank"]
    steps = [line["step"] for line in history]
    sizes = [line["parameters"] / 1e3 for line in history]
    total = metrics["dense"]["parameters"] / 1e3
    axes.axhline(total, color=ORANGE, linewidth=1.3)
    axes.step(steps, sizes, where="post", color=BLUE, linewidth=1.8)
    axes.fill_between(steps, sizes, step="post", color=BLUE, alpha=0.12)
    axes.annotate(f"{metrics['removed']:.1%} removed", (steps[-1], sizes[-1]), (0, 6),
                  textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    axes.set_ylim(0, 1.15 * total)
    axes.set_ylabel("parameters\n(thousands)")
    plain(axes)


def _draw_conditions(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    """A line a layer, with gaps where it is None, i.e. infinite."""
    from matplotlib.ticker import LogLocator

    lines = [line for line in history if "condition" in line]
    steps = [line["step"] for line in lines]
    for name in lines[-1]["condition"]:
        values = (line["condition"][name] for line in lines)
        drawn = [nan if v is None else v for v in values]
        axes.plot(steps, drawn, color=BLUE, linewidth=1, alpha=0.6)
    axes.set_yscale("log")
    axes.set_ylim(bottom=1, top=max(2.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("condition of\neach layer")
    axes.set_xlabel("step")
    plain(axes)
