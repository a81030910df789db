"""Convolutions of size 1 over compression: cut plainly, cut in the metric of the loss, healed.

A network of inverted blocks is trained on Fashion-MNIST with dense weights, then compressed by
`rankwise compress` to several shares of its pointwise convolutions. `python
benchmarks/pointwise.py` writes `pointwise.md` and `pointwise.png`.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tables import spread, table
from torch.nn.functional import cross_entropy

from rankwise.recipes.compress import compress
from rankwise.recipes.compress_options import CompressOptions
from rankwise.recipes.history import Watcher
from rankwise.recipes.images import read_images, rows_at
from rankwise.recipes.networks import network
from rankwise.recipes.training import warm_up_and_decay

COLOURS = {"plain": "#d55e00", "calibrated": "#0072b2", "healed": "#009e73"}
NAMES = {
    "plain": "truncated SVD, all layers alike",
    "calibrated": "metric of the loss, shared out",
    "healed": "and healed",
}


@dataclass(frozen=True)
class Options:
    """Train a network with pointwise convolutions and compress those."""

    output: Path = Path("runs/pointwise")
    """Folder of the runs, the table and the figure."""
    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2)
    """Of the weights of pointwise convolutions that are kept."""
    steps: int = 1404
    """Of the dense network; 3 epochs."""
    heal_steps: int = 200
    heal_lr: float = 3e-3


def main(options: Options) -> None:
    runs = {seed: _runs(seed, options) for seed in options.seeds}
    text = report(runs, options)
    (options.output / "pointwise.md").write_text(text)
    draw(runs, options, options.output / "pointwise.png")
    print(text)


def _runs(seed: int, options: Options) -> dict[tuple[float, str], dict[str, Any]]:
    """Metrics by share and way of cutting."""
    watcher = Watcher(say=lambda message: None, step=lambda line: None)
    trained = options.output / f"dense-{seed}.safetensors"
    if not trained.exists():
        options.output.mkdir(parents=True, exist_ok=True)
        save_file(dense(seed, options.steps).state_dict(), trained)
    found = {}
    for share in options.shares:
        for way in ("plain", "calibrated"):
            folder = options.output / f"{way}-{share:g}-{seed}"
            if not (folder / "metrics.json").exists():
                print(seed, share, way, flush=True)
                compress(
                    CompressOptions(
                        model="mobile",
                        weights=trained,
                        data="fashion-mnist",
                        keep=share,
                        plain=way == "plain",
                        select=("*.expand", "*.project", "8"),
                        calibration=1024,
                        batch_size=64,
                        heal_steps=options.heal_steps,
                        distill=0.5,
                        lr=options.heal_lr,
                        curve=False,
                        seed=seed,
                        output=folder,
                        overwrite=True,
                        threads=1,
                    ),  # fmt: skip
                    watcher,
                )
            found[share, way] = json.loads((folder / "metrics.json").read_text())
    return found


def dense(seed: int, steps: int) -> torch.nn.Module:
    """The network, trained as `rankwise train` trains a dense one."""
    torch.set_num_threads(1)
    data = read_images("fashion-mnist")
    model = network("mobile", classes=len(data.classes), channels=1, size=28, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_decay(steps))
    for step in range(steps):
        rows = rows_at(step, count=len(data.train), batch_size=128, seed=seed)
        optimizer.zero_grad()
        cross_entropy(model(data.train[rows]), data.labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return model


def points(
    runs: dict[int, dict[tuple[float, str], dict[str, Any]]], share: float
) -> dict[str, list[float]]:
    """Accuracies in per cent of all seeds, by what was done."""
    stages = (
        ("plain", "plain", "cut"),
        ("calibrated", "calibrated", "cut"),
        ("plain, healed", "plain", "after"),
        ("healed", "calibrated", "after"),
    )
    return {
        name: [100 * found[share, way][stage]["accuracy"] for found in runs.values()]
        for name, way, stage in stages
    }


def report(runs: dict[int, dict[tuple[float, str], dict[str, Any]]], options: Options) -> str:
    header = ["kept of the pointwise weights", "of all", "truncated SVD, alike"]
    lines = [[*header, "metric of the loss", "SVD, healed", "metric of the loss, healed"]]
    whole = [
        100 * found[options.shares[0], "plain"]["before"]["accuracy"] for found in runs.values()
    ]
    lines.append(["100%", "100%", spread(whole, ".2f"), "", "", ""])
    for share in options.shares:
        ratio = [
            found[share, "calibrated"]["after"]["parameters"]
            / found[share, "calibrated"]["before"]["parameters"]
            for found in runs.values()
        ]
        cells = [spread(values, ".2f") for values in points(runs, share).values()]
        lines.append([f"{share:.0%}", f"{statistics.fmean(ratio):.0%}", *cells])
    return table(lines)


def draw(
    runs: dict[int, dict[tuple[float, str], dict[str, Any]]], options: Options, path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=130)
    axes: Any = figure.subplots()
    whole = [
        100 * found[options.shares[0], "plain"]["before"]["accuracy"] for found in runs.values()
    ]
    axes.axhline(
        statistics.fmean(whole), color="#444444", linestyle=":", linewidth=1, label="dense"
    )
    for name, label in NAMES.items():
        values = [points(runs, share)[name] for share in options.shares]
        means = [statistics.fmean(v) for v in values]
        errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        shares = [100 * share for share in options.shares]
        axes.errorbar(
            shares, means, errors, marker="o", capsize=3, color=COLOURS[name], label=label
        )
    axes.invert_xaxis()
    axes.set_xlabel("weights of pointwise convolutions kept, %")
    axes.set_ylabel("accuracy on 10 000 test images, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    figure.savefig(path)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
