"""Records as one picture: losses over steps, seconds and rates; final over initial ranks."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from tables import Key, Record, by_setting, chosen, rate_curve

COLOURS = {
    "rankwise": "#d55e00",
    "LoRA": "#0072b2",
    "rsLoRA": "#56b4e9",
    "DoRA": "#009e73",
    "PiSSA": "#cc79a7",
    "AdaLoRA": "#e69f00",
    "full": "#999999",
}
RULE_COLOURS = ("#d55e00", "#0072b2", "#009e73")
WIDTH = 25
LORA_RANK = 8


def draw(records: list[Record], path: Path, default: Key) -> None:
    from matplotlib.figure import Figure

    groups = by_setting(records)
    picked = [key for key in chosen(groups, default) if key == default or key.rank == LORA_RANK]
    figure = Figure(figsize=(13, 8), layout="constrained", dpi=110)
    (over_steps, over_seconds), (over_rates, over_ranks) = figure.subplots(2, 2)
    _courses(over_steps, groups, picked, seconds=False)
    _courses(over_seconds, groups, picked, seconds=True)
    _rates(over_rates, groups)
    _initial_ranks(over_ranks, groups, default.lr)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _courses(
    axes: Any, groups: dict[Key, dict[int, Record]], picked: list[Key], *, seconds: bool
) -> None:
    """Training loss, a running mean, averaged over seeds; time is the median step of the method."""
    for key in sorted(picked, key=lambda k: k[0] != "rankwise"):
        runs = list(groups[key].values())
        length = min(len(r["losses"]) for r in runs)
        mean = [statistics.fmean(r["losses"][i] for r in runs) for i in range(length)]
        smooth = [statistics.fmean(mean[max(0, i + 1 - WIDTH) : i + 1]) for i in range(5, length)]
        step = statistics.median(r["seconds_per_step"] for r in runs) if seconds else 1.0
        x = [(i + 1) * step for i in range(5, length)]
        width = 2.4 if key[0] == "rankwise" else 1.3
        axes.plot(x, smooth, color=COLOURS.get(key[0]), linewidth=width, label=key[0])
    axes.set_xlabel("seconds of training (one thread, shared machine)" if seconds else "step")
    axes.set_ylabel("training loss, smoothed")
    axes.legend(frameon=False, fontsize=8)


def _rates(axes: Any, groups: dict[Key, dict[int, Record]]) -> None:
    seed = min(seed for group in groups.values() for seed in group)
    for method in ("rankwise", "LoRA"):
        for measure, style in (("eval_loss", "o-"), ("train_loss", "o--")):
            points = rate_curve(groups, method, LORA_RANK, seed, measure)
            name = f"{method}, {'validation' if measure == 'eval_loss' else 'training'}"
            axes.plot(*zip(*points, strict=True), style, color=COLOURS[method], label=name, ms=4)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss at the end")
    axes.legend(frameon=False, fontsize=8)


def _initial_ranks(axes: Any, groups: dict[Key, dict[int, Record]], default_lr: float) -> None:
    """Mean final rank over the initial one, one point a seed."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for key, group in groups.items():
        if key.method.startswith("rankwise") and key.lr == default_lr:
            rule = key.method.partition(", ")[2] or "budget"
            ends = (statistics.fmean(record["ranks"].values()) for record in group.values())
            points[rule].extend((key.rank, end) for end in ends)
    for (rule, pairs), colour in zip(sorted(points.items()), RULE_COLOURS, strict=False):
        axes.plot(*zip(*pairs, strict=True), "o", color=colour, alpha=0.7, label=rule)
    ranks = [rank for pairs in points.values() for rank, _ in pairs]
    axes.plot([min(ranks), max(ranks)], [min(ranks), max(ranks)], ":", color="#999999")
    axes.annotate("rank unchanged", (max(ranks), max(ranks)), ha="right", va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("initial rank")
    axes.set_ylabel("mean final rank")
    axes.legend(frameon=False, fontsize=8)
