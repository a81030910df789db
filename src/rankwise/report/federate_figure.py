"""The picture of federated training: accuracy over rounds and over what was sent."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from rankwise.report.canvas import canvas, write_png
from rankwise.report.figure import BLUE, GREY, ORANGE, plain

COLOURS = {
    "full": BLUE,
    "simplified": "#56b4e9",
    "none": "#009e73",
    "fedavg": ORANGE,
    "factor-average": "#cc79a7",
}


def draw_federation(
    metrics: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
) -> None:
    """Write a PNG of a run of `rankwise federate`.

    Args:
        metrics: what it writes to `metrics.json`.
        histories: by contender, one mapping a round with `step`, `accuracy`, `bytes_down` and
            `bytes_up`.
        path: of the picture.

    Raises:
        ImportError: without matplotlib.
    """
    figure = canvas(12.5, 4.8)
    over_rounds, over_bytes = figure.subplots(1, 2, sharey=True)
    for name, lines in histories.items():
        style = {"color": COLOURS[name], "linewidth": 1.8}
        accuracy = [100 * line["accuracy"] for line in lines]
        title = metrics["results"][name]["title"]
        over_rounds.plot([line["step"] for line in lines], accuracy, label=title, **style)
        sent = accumulate(line["bytes_down"] + line["bytes_up"] for line in lines)
        megabytes = [total / 1e6 for total in sent]
        over_bytes.plot(megabytes, accuracy, **style)
        over_bytes.plot(megabytes[-1], accuracy[-1], "o", color=COLOURS[name], markersize=6)
    over_bytes.set_xscale("log")
    over_bytes.xaxis.set_major_formatter("{x:g}")
    for axes, what, unit in (
        (over_rounds, "rounds", "round"),
        (over_bytes, "what was sent", "MB, all clients, both ways"),
    ):
        if metrics["target"] is not None:
            axes.axhline(100 * metrics["target"], color=GREY, linewidth=1, linestyle="--", zorder=0)
        axes.set_title(f"test accuracy over {what}", loc="left", fontweight="bold")
        axes.set_xlabel(unit)
        plain(axes)
    over_rounds.xaxis.get_major_locator().set_params(integer=True)
    over_rounds.set_ylabel("accuracy, %")
    over_rounds.legend(frameon=False, loc="lower right")
    write_png(figure, path)
