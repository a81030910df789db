"""Fashion-MNIST with a tenth of the parameters, against the dense network; one command.

Runs `rankwise train` for each model and seed, each at the recipe's defaults. The rates were chosen
on seed 0, as `docs/train.md` says. Writes the table into `docs/train.md` and `docs/fashion.png`.
"""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import spread, table

from rankwise.recipes.folder import METRICS, OPTIONS
from rankwise.recipes.history import Watcher
from rankwise.recipes.train import train_classifier
from rankwise.recipes.train_options import TrainOptions

COLOURS = {"mlp": "#0072b2", "cnn": "#d55e00", "lenet": "#009e73", "vit": "#cc79a7"}
RESULTS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Train every model densely and in low rank, and compare by seed."""

    output: Path = Path("runs/fashion")
    """Folder of the runs; those that are finished are not repeated."""
    models: tuple[str, ...] = ("mlp", "cnn")
    seeds: tuple[int, ...] = (0, 1, 2)
    keep: float = 0.1
    docs: Path = Path("docs")


def main(options: Options) -> None:
    results = {
        model: [metrics_of(options, model, seed) for seed in options.seeds]
        for model in options.models
    }
    text = report(results)
    page = options.docs / "train.md"
    page.write_text(RESULTS.sub(lambda _: text, page.read_text()))
    draw(results, options.docs / "fashion.png")
    print(text)


def metrics_of(options: Options, model: str, seed: int) -> Metrics:
    """Of a finished run, or of one that is run or gone on with now."""
    folder = options.output / f"{model}-{seed}"
    if not (folder / METRICS).exists():
        settings = TrainOptions(model=model, keep=options.keep, seed=seed, output=folder, threads=1)
        if (folder / OPTIONS).exists():
            settings = TrainOptions(output=folder, resume=True, threads=1)
        watcher = Watcher(lambda message: print(model, seed, message, flush=True), lambda _: None)
        train_classifier(settings, watcher)
    metrics: Metrics = json.loads((folder / METRICS).read_text())
    return metrics


def report(results: dict[str, list[Metrics]]) -> str:
    """Accuracies in percent; in brackets the deviation over seeds, of the differences by seed."""
    lines = [["model", "", "seeds", "parameters", "removed", "accuracy", "to dense", "test loss",
              "FLOPs", "file, kB", "batch 1, ms", "batch 32, ms"]]  # fmt: skip
    for model, runs in results.items():
        removed = f"{min(r['removed'] for r in runs):.1%}"
        gaps = [100 * (r["low_rank"]["accuracy"] - r["dense"]["accuracy"]) for r in runs]
        for name in ("dense", "low_rank"):
            beside = ["", ""] if name == "dense" else [removed, spread(gaps, "+.2f")]
            cells = _cells([r[name] for r in runs], beside)
            lines.append([model, name.replace("_", " "), str(len(runs)), *cells])
    return table(lines)


def _cells(own: list[Metrics], beside: list[str]) -> list[str]:
    removed, gap = beside
    latency = [1e3 * statistics.fmean(m["latency"][rows] for m in own) for rows in ("1", "32")]
    return [
        f"{_mean(own, 'parameters'):,.0f}", removed,
        spread([100 * m["accuracy"] for m in own], ".2f"), gap,
        spread([m["loss"] for m in own], ".3f"),
        f"{_mean(own, 'flops_per_image'):,.0f}", f"{_mean(own, 'bytes') / 1e3:,.0f}",
        *(f"{ms:.2f}" for ms in latency),
    ]  # fmt: skip


def _mean(measures: list[Metrics], key: str) -> float:
    return statistics.fmean(m[key] for m in measures)


def draw(results: dict[str, list[Metrics]], path: Path) -> None:
    """Accuracy over parameters; each line is a seed, from the dense network to the low-rank one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained", dpi=130)
    axes: Any = figure.subplots()
    for model, runs in results.items():
        colour = COLOURS.get(model, "#444444")
        for i, run in enumerate(runs):
            pair = [run["dense"], run["low_rank"]]
            x, y = [m["parameters"] for m in pair], [100 * m["accuracy"] for m in pair]
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6, label=model if i == 0 else None)
            axes.plot(x[0], y[0], "s", color=colour, mfc="white", markersize=7)
            axes.plot(x[1], y[1], "o", color=colour, markersize=7)
    axes.plot([], [], "s", color="#444444", mfc="white", label="dense")
    axes.plot([], [], "o", color="#444444", label="low rank")
    axes.set_xscale("log")
    axes.set_xlabel("parameters of the network")
    axes.set_ylabel("accuracy on 10 000 test images, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
