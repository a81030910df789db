"""The picture of a study: loss over gradients and seconds, stationarity, ranks or time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rankwise.report.canvas import canvas, write_png
from rankwise.report.figure import running_mean

COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#999999")


class Traced(Protocol):
    """What is drawn of a contender: lists with one entry a step."""

    name: str
    gradients: list[int]
    seconds: list[float]
    losses: list[float]
    ranks: list[float]
    stationarity: list[float]
    accuracy: float | None


def draw_study(problem: str, traces: Sequence[Traced], path: Path) -> None:
    """Write a PNG.

    Raises:
        ImportError: without matplotlib.
    """
    figure = canvas(12, 7.5, dpi=110)
    axes: Any = figure.subplots(2, 2)
    (per_gradient, per_second), (stationarity, last) = axes
    noisy = any(trace.accuracy is not None for trace in traces)
    adaptive = any(len(set(trace.ranks)) > 1 for trace in traces)
    for index, (trace, colour) in enumerate(zip(traces, COLOURS, strict=False)):
        losses = running_mean(trace.losses) if noisy else trace.losses
        norms = running_mean(trace.stationarity) if noisy else trace.stationarity
        # Integrators often coincide: a broad line below a narrow one stays visible.
        style = {"color": colour, "linewidth": 6.0 - 0.8 * index, "solid_capstyle": "butt"}
        per_gradient.plot(trace.gradients, losses, label=trace.name, **style)
        per_second.plot(trace.seconds, losses, **style)
        stationarity.plot(trace.gradients, norms, **style)
        if adaptive:
            last.plot(trace.gradients, trace.ranks, **style)
        else:
            last.barh(trace.name, 1e3 * trace.seconds[-1] / len(trace.seconds), color=colour)
    what = "relative error" if problem == "flow" else "loss"
    for panel, x, y in (
        (per_gradient, "gradients", what),
        (per_second, "seconds", what),
        (stationarity, "gradients", "||P(W) G||"),
        (last, *(("gradients", "mean rank") if adaptive else ("milliseconds a step", ""))),
    ):
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.spines[["top", "right"]].set_visible(False)
        if panel is not last:
            panel.set_yscale("log")
    if not adaptive:
        last.invert_yaxis()
    per_gradient.legend(frameon=False, fontsize=9)
    write_png(figure, path)
