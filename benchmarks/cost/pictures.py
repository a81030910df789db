"""The results of the suite as pictures, one a level."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cost.report import number

COLOURS = {
    "LoRA": "#0072b2",
    "frozen": "#999999",
    "rankwise": "#d55e00",
    "rankwise adapting": "#e69f00",
    "AdaLoRA": "#cc79a7",
    "DoRA": "#009e73",
}
OTHER = "#bbbbbb"
SMOOTH = 15
PHASES = {"forward": "#56b4e9", "backward": "#0072b2", "optimizer": "#d55e00"}
Row = Mapping[str, Any]


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Write `<level>.png` for each level that was measured."""
    levels: dict[str, Callable[[Any, Any], None]] = {
        "layer": _layers,
        "geometry": _geometry,
        "model": _models,
        "training": _runs,
        "scratch": _scratch,
    }
    for level, paint in levels.items():
        if level in results:
            _picture(results[level], paint, folder / f"{level}.png")


def _picture(rows: Any, paint: Callable[[Any, Any], None], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=120)
    paint(figure, rows)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _layers(figure: Any, rows: list[Row]) -> None:
    """Ratios to LoRA with quartiles, a line of dots a contender."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure.set_size_inches(7, 1.2 + 0.26 * len(cases))
    axes = figure.subplots()
    _dots(axes, rows, cases)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _dots(axes: Any, rows: list[Row], cases: list[str]) -> None:
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    for index, name in enumerate(contenders):
        own = [row for row in rows if row["contender"] == name]
        middle = [row["to LoRA"][1] for row in own]
        error = [
            [row["to LoRA"][1] - row["to LoRA"][0] for row in own],
            [row["to LoRA"][2] - row["to LoRA"][1] for row in own],
        ]
        shift = 0.5 * (index / max(1, len(contenders) - 1) - 0.5)
        places = [cases.index(row["case"]) + shift for row in own]
        colour = COLOURS.get(name, OTHER)
        axes.errorbar(middle, places, xerr=error, fmt="o", ms=4, color=colour, label=name)
    axes.axvline(1.0, color=COLOURS["LoRA"], lw=0.8, ls=":")
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time, to LoRA (median and quartiles)")


def _geometry(figure: Any, found: Row) -> None:
    from matplotlib.ticker import FormatStrFormatter

    plain = FormatStrFormatter("%g")
    figure.set_size_inches(8, 3.6)
    for axes, what, other in zip(
        figure.subplots(1, 2), ("size", "rank"), ("rank", "size"), strict=True
    ):
        times = {int(at): 1e3 * seconds for at, seconds in found[f"by {what}"].items()}
        axes.loglog(list(times), list(times.values()), "o-", color=COLOURS["rankwise"])
        axes.set_xticks(list(times), list(map(str, times)), fontsize=8)
        axes.xaxis.minorticks_off()
        axes.yaxis.set_minor_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
        axes.set_xlabel(f"{what}, at {other} {found[f'at {other}']}")
        power = found["exponents"][what]["of the last"]
        axes.set_title(f"exponent of the last three: {number(power)}", fontsize=9)
        axes.set_ylabel("ms a step beyond AdamW")


def _models(figure: Any, rows: list[Row]) -> None:
    """Ratios to LoRA, seconds by phase of the first case, and peaks."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure.set_size_inches(15, max(4.0, 1.2 + 0.5 * len(cases)))
    ratios, phases, peaks = figure.subplots(1, 3)
    _dots(ratios, rows, cases)
    ratios.legend(frameon=False, fontsize=8, loc="best")
    _phases(phases, [row for row in rows if row["case"] == cases[0]])
    phases.set_title(cases[0], fontsize=9)
    _peaks(peaks, rows, cases)


def _phases(axes: Any, rows: list[Row]) -> None:
    names = [row["contender"] for row in rows]
    left = [0.0] * len(rows)
    for phase, colour in PHASES.items():
        seconds = [row["phases"][phase] for row in rows]
        axes.barh(names, seconds, left=left, color=colour, label=phase)
        left = [start + own for start, own in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds a step")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.05), ncols=3)


def _peaks(axes: Any, rows: list[Row], cases: list[str]) -> None:
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == name]
        places = [cases.index(row["case"]) for row in own]
        peaks = [row["bytes to LoRA"]["peak_total"] for row in own]
        axes.plot(peaks, places, "o", ms=5, color=COLOURS.get(name, OTHER), label=name)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("peak memory, to LoRA")


def _runs(figure: Any, rows: list[Row]) -> None:
    """Training loss over seconds, a line for LoRA and for each length of ours."""
    figure.set_size_inches(6.5 * len(rows), 4.2)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        seconds = row["seconds a step"]
        for index, (share, run) in enumerate(row["rankwise"].items()):
            strength = 0.35 + 0.65 * (index + 1) / len(row["rankwise"])
            x, y = _smooth(run["losses"], seconds["rankwise"])
            axes.plot(x, y, color=COLOURS["rankwise"], alpha=strength, label=f"rankwise, {share}")
        x, y = _smooth(row["LoRA"]["losses"], seconds["LoRA"])
        axes.plot(x, y, color=COLOURS["LoRA"], lw=2, label="LoRA")
        axes.axhline(row["LoRA"]["train_loss"], color=COLOURS["LoRA"], lw=0.8, ls=":")
        axes.set_title(row["task"], fontsize=9)
        axes.set_xlabel("seconds")
        axes.set_ylabel("training loss, smoothed, mean over seeds")
        axes.legend(frameon=False, fontsize=8)


def _smooth(losses: list[float], seconds: float) -> tuple[list[float], list[float]]:
    """Running means over the last steps, at the time of the last of them."""
    windows = [losses[max(0, i + 1 - SMOOTH) : i + 1] for i in range(len(losses))]
    means = [sum(window) / len(window) for window in windows]
    return [seconds * (i + 1) for i in range(len(losses))], means


def _scratch(figure: Any, rows: list[Row]) -> None:
    figure.set_size_inches(6.5 * len(rows), 4.2)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        for name, course in row["courses"].items():
            _, seconds, accuracies = zip(*course, strict=True)
            axes.plot(seconds, [100 * a for a in accuracies], "o-", ms=3, label=name)
        axes.axhline(100 * row["target"], color=OTHER, lw=0.8, ls=":")
        axes.set_title(f"width {row['width']}", fontsize=9)
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("test accuracy, %")
        axes.legend(frameon=False, fontsize=8)
