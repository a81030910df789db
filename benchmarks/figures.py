"""Records as one picture: losses over steps, parameters and rates; sizes over initial ranks."""

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
    picked = chosen(groups, default)
    figure = Figure(figsize=(13, 8), layout="constrained", dpi=110)
    (over_steps, over_parameters), (over_rates, over_ranks) = figure.subplots(2, 2)
    _courses(over_steps, groups, [k for k in picked if k in (default, *_of_lora_rank(picked))])
    _parameters(over_parameters, groups, picked)
    _rates(over_rates, groups, default)
    _initial_ranks(over_ranks, groups, default.lr)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _of_lora_rank(keys: list[Key]) -> list[Key]:
    return [key for key in keys if key.rank == LORA_RANK]


def _courses(axes: Any, groups: dict[Key, dict[int, Record]], picked: list[Key]) -> None:
    """Training loss, a running mean, averaged over the seeds that all methods have."""
    seeds = set.intersection(*(set(groups[key]) for key in picked))
    for key in sorted(picked, key=lambda k: k[0] != "rankwise"):
        runs = [groups[key][seed] for seed in seeds]
        length = min(len(r["losses"]) for r in runs)
        mean = [statistics.fmean(r["losses"][i] for r in runs) for i in range(length)]
        smooth = [statistics.fmean(mean[max(0, i + 1 - WIDTH) : i + 1]) for i in range(5, length)]
        width = 2.4 if key[0] == "rankwise" else 1.3
        x = range(6, length + 1)
        axes.plot(x, smooth, color=COLOURS.get(key[0]), linewidth=width, label=key[0])
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, smoothed")
    axes.legend(frameon=False, fontsize=8)


def _parameters(axes: Any, groups: dict[Key, dict[int, Record]], picked: list[Key]) -> None:
    """Validation loss over the parameters at the end: mean over the seeds that all have."""
    seeds = set.intersection(*(set(groups[key]) for key in picked))
    points = []
    for key in picked:
        runs = [groups[key][seed] for seed in seeds]
        x = statistics.fmean(r["parameters"]["end"] for r in runs)
        points.append((statistics.fmean(r["eval_loss"] for r in runs), x, key))
    for index, (y, x, key) in enumerate(sorted(points)):
        axes.plot(x, y, "o", color=COLOURS.get(key[0]), markersize=7)
        name = key[0] if key[0] in ("full", "rankwise") else f"{key[0]} {key.rank}"
        left = index % 2 == 1
        axes.annotate(
            name,
            (x, y),
            xytext=(-7 if left else 7, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.15)
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters at the end, without the head")
    axes.set_ylabel("validation loss")


def _rates(axes: Any, groups: dict[Key, dict[int, Record]], default: Key) -> None:
    seed = min(seed for group in groups.values() for seed in group)
    for method, rank in (("rankwise", default.rank), ("LoRA", LORA_RANK)):
        for measure, style in (("eval_loss", "o-"), ("train_loss", "o--")):
            points = rate_curve(groups, method, rank, seed, measure)
            name = f"{method}, {'validation' if measure == 'eval_loss' else 'training'}"
            axes.plot(*zip(*points, strict=True), style, color=COLOURS[method], label=name, ms=4)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss at the end")
    axes.legend(frameon=False, fontsize=8)


def _initial_ranks(axes: Any, groups: dict[Key, dict[int, Record]], default_lr: float) -> None:
    """Parameters at the end over the initial rank, one point a seed."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    starts: dict[int, float] = {}
    for key, group in groups.items():
        if key.method.startswith("rankwise") and key.lr == default_lr:
            rule = key.method.partition(", ")[2] or "budget"
            for record in group.values():
                points[rule].append((key.rank, record["parameters"]["end"]))
                starts[key.rank] = record["parameters"]["start"]
    for (rule, pairs), colour in zip(sorted(points.items()), RULE_COLOURS, strict=False):
        axes.plot(*zip(*pairs, strict=True), "o", color=colour, alpha=0.7, label=rule)
    axes.plot(
        *zip(*sorted(starts.items()), strict=True), ":", color="#999999", label="at the start"
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("initial rank")
    axes.set_ylabel("parameters at the end")
    axes.legend(frameon=False, fontsize=8)
