"""The picture of a run: where the rank went, and how the loss and the size fell."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.report.canvas import canvas, write_png

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"
SMOOTH = 15


def draw_run(
    metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], path: str | Path
) -> None:
    """Write a PNG with the ranks by layer and the course of loss, size and tangent gradient.

    Args:
        metrics: with `ranks` (layer name to rank) and what `rankwise finetune` writes besides.
        history: one mapping a step with `step`, `loss`, `parameters`, `gradient_norm`.
        path: of the picture.

    Raises:
        ImportError: without matplotlib.
    """
    kinds, blocks, table = rank_table(metrics["ranks"])
    height = max(4.2, 1.6 + 0.42 * len(kinds))
    figure = canvas(12.5, height)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    left, right = halves
    _draw_ranks(left.subplots(), kinds, blocks, table)
    loss, size = right.subplots(2, 1, sharex=True)
    _draw_loss(loss, history, metrics)
    _draw_size(size, history)
    write_png(figure, path)


def rank_table(
    ranks: Mapping[str, int],
) -> tuple[list[str], list[str], list[list[int | None]]]:
    """Kinds of layers, blocks, and the rank of each; None where a block has no such layer.

    A name is split at its first number: `layer.3.output.dense` is kind `output.dense`, block 3.
    """
    cells: dict[tuple[str, str], int] = {}
    for name, rank in ranks.items():
        match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        kind = name[match.end() :] or name if match else name
        cells[kind, match.group(1) if match else ""] = rank
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    blocks = sorted({block for _, block in cells}, key=lambda b: int(b or -1))
    return kinds, blocks, [[cells.get((kind, block)) for block in blocks] for kind in kinds]


def _draw_ranks(
    axes: Any, kinds: list[str], blocks: list[str], table: list[list[int | None]]
) -> None:
    values = [[float("nan") if rank is None else rank for rank in row] for row in table]
    top = max((rank for row in table for rank in row if rank is not None), default=1)
    axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=top)
    if len(blocks) <= 32:
        for i, row in enumerate(table):
            for j, rank in enumerate(row):
                if rank is not None:
                    colour = "black" if rank > 0.55 * top else "white"
                    axes.text(j, i, str(rank), ha="center", va="center", color=colour, fontsize=9)
    step = -(-len(blocks) // 24)
    axes.set_xticks(range(0, len(blocks), step), [blocks[i] for i in range(0, len(blocks), step)])
    axes.set_yticks(range(len(kinds)), [kind.replace("attention.", "att.") for kind in kinds])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("block")
    axes.set_title("rank of each layer", loc="left", fontweight="bold")


def _draw_loss(axes: Any, history: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
    steps = [line["step"] for line in history]
    losses = [line["loss"] for line in history]
    axes.plot(steps, losses, color=GREY, linewidth=0.7, alpha=0.7, label="each batch")
    axes.plot(steps, running_mean(losses), color=BLUE, linewidth=1.8, label="training, smoothed")
    if "eval_loss" in metrics:
        axes.plot(
            steps[-1], metrics["eval_loss"], "D", color=ORANGE, markersize=6, label="held-out rows"
        )
    axes.set_ylabel("loss")
    axes.set_title(_headline(metrics), loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    plain(axes)


def _draw_size(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    steps = [line["step"] for line in history]
    sizes = [line["parameters"] / 1e3 for line in history]
    axes.step(steps, sizes, where="post", color=BLUE, linewidth=1.8)
    axes.fill_between(steps, sizes, step="post", color=BLUE, alpha=0.12)
    axes.set_ylim(0, 1.15 * max(sizes))
    axes.set_ylabel("adapter parameters\n(thousands)")
    axes.set_xlabel("step")
    plain(axes)


def running_mean(values: Sequence[float], width: int = SMOOTH) -> list[float]:
    """Mean over the last `width` values up to each."""
    return [
        sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))
    ]


def _headline(metrics: Mapping[str, Any]) -> str:
    if "eval_perplexity" in metrics:
        before, after = metrics["eval_perplexity_before"], metrics["eval_perplexity"]
        return f"loss; perplexity {after:.1f} on held-out rows, {before:.1f} before"
    if "accuracy" not in metrics:
        return "loss"
    return f"loss; accuracy {metrics['accuracy']:.1%} on held-out rows"


def plain(axes: Any) -> None:
    """No frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
