"""Records as one picture: losses over steps, seconds, parameters, rates; sizes over ranks."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
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


def draw(
    records: list[Record], path: Path, default: Key, seconds: Mapping[str, float] | None = None
) -> None:
    """Write the picture; `seconds` a step by method, if they were measured side by side."""
    from matplotlib.figure import Figure

    groups = by_setting(records)
    picked = chosen(groups, default)
    compared = [k for k in picked if k in (default, *_of_lora_rank(picked))]
    figure = Figure(figsize=(16, 8), layout="constrained", dpi=100)
    (steps, time, parameters), (losses, accuracies, ranks) = figure.subplots(2, 3)
    _courses(steps, groups, compared, dict.fromkeys((k.method for k in compared), 1.0))
    steps.set_xlabel("step")
    steps.legend(frameon=False, fontsize=8)
    _courses(time, groups, compared, seconds or _own_seconds(groups, compared))
    time.set_xlabel("seconds" if seconds else "seconds (each run's own, on a shared machine)")
    _parameters(parameters, groups, picked)
    _rates(losses, groups, default, {"eval_loss": "validation", "train_loss": "training"})
    losses.set_ylabel("loss at the end")
    if all("accuracy" in record for record in records):
        _rates(accuracies, groups, default, {"accuracy": "accuracy"})
        accuracies.set_ylabel("held-out accuracy")
    else:
        accuracies.set_axis_off()
    _initial_ranks(ranks, groups, default.lr)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _own_seconds(groups: dict[Key, dict[int, Record]], keys: list[Key]) -> dict[str, float]:
    return {
        key.method: statistics.median(r["seconds_per_step"] for r in groups[key].values())
        for key in keys
    }


def _of_lora_rank(keys: list[Key]) -> list[Key]:
    return [key for key in keys if key.rank == LORA_RANK]


def _courses(
    axes: Any,
    groups: dict[Key, dict[int, Record]],
    picked: list[Key],
    seconds: Mapping[str, float],
) -> None:
    """Training loss over steps times seconds, a running mean over the seeds that all have."""
    seeds = set.intersection(*(set(groups[key]) for key in picked))
    for key in sorted(picked, key=lambda k: k[0] != "rankwise"):
        if key.method not in seconds:
            continue
        runs = [groups[key][seed] for seed in seeds]
        length = min(len(r["losses"]) for r in runs)
        mean = [statistics.fmean(r["losses"][i] for r in runs) for i in range(length)]
        smooth = [statistics.fmean(mean[max(0, i + 1 - WIDTH) : i + 1]) for i in range(5, length)]
        width = 2.4 if key.method == "rankwise" else 1.3
        x = [(i + 1) * seconds[key.method] for i in range(5, length)]
        axes.plot(x, smooth, color=COLOURS.get(key.method), linewidth=width, label=key.method)
    axes.set_ylabel("training loss, smoothed")


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


def _rates(
    axes: Any,
    groups: dict[Key, dict[int, Record]],
    default: Key,
    measures: Mapping[str, str],
) -> None:
    """Measures over the rate, one seed; a run that diverged is left out."""
    seed = min(seed for group in groups.values() for seed in group)
    for method, rank in (("rankwise", default.rank), ("LoRA", LORA_RANK)):
        for (measure, name), style in zip(measures.items(), ("o-", "o--"), strict=False):
            points = rate_curve(groups, method, rank, seed, measure)
            label = f"{method}, {name}"
            axes.plot(*zip(*points, strict=True), style, color=COLOURS[method], label=label, ms=4)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
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
