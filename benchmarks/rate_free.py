"""Steps without a learning rate beside the best of a grid of rates, on three tasks.

On the language model the grid is the default rate: higher ones are as good, steps are bounded.

The rate is chosen by the mean validation loss over all seeds: the best that one could do with as
many runs as the grid has rates. Rate-free steps run once a seed, the new head of the reviews and
the biases of LeNet included, which have rates of their own otherwise.
"""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import ours
from lenet_task import EPOCH
from methods import Setting
from pool import Pool
from tables import spread, table

RATES = {
    "reviews": (1e-3, 3e-3, 1e-2),
    "language": (3e-3,),
    "lenet": (0.02, 0.04, 0.08, 0.16),
}
STEPS = {"reviews": 150, "language": 50, "lenet": 2 * EPOCH}
LENET_RANK = 8


@dataclass(frozen=True)
class Options:
    """Compare rate-free steps with tuned ones."""

    output: Path = Path("runs/rate-free")
    """Folder of the records and the table."""
    tasks: tuple[str, ...] = tuple(RATES)
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 2


def main(options: Options) -> None:
    lines = [["task", "steps", "rate", "training loss", "to tuned", "validation loss", "to tuned"]]
    for task in options.tasks:
        lines += compare(task, options)
    text = table(lines)
    (options.output / "rate_free.md").write_text(text)
    print(text)


def compare(task: str, options: Options) -> list[list[str]]:
    """One row a rate, the best first, and one without."""
    pool = Pool(options.output, task, task != "lenet", options.workers)
    base = setting(task)
    arms = {f"{lr:g}": replace(base, lr=lr) for lr in RATES[task]}
    arms["none"] = replace(base, method="rankwise rate-free", lr=1.0)
    pool.run(replace(arm, seed=seed) for arm in arms.values() for seed in options.seeds)
    records = {
        name: [pool.record(replace(arm, seed=seed)) for seed in options.seeds]
        for name, arm in arms.items()
    }
    rates = [name for name in records if name != "none"]
    best = min(rates, key=lambda name: mean(records[name], "eval_loss"))
    others = sorted((name for name in rates if name != best), key=float)
    rows = []
    for name in (best, "none", *others):
        row = [task, str(base.steps), name + (" (tuned)" if name == best else "")]
        for measure in ("train_loss", "eval_loss"):
            row.append(spread([r[measure] for r in records[name]], ".4f"))
            ratio = mean(records[name], measure) / mean(records[best], measure) - 1
            row.append("" if name == best else f"{ratio:+.1%}")
        rows.append(row)
    return rows


def setting(task: str) -> Setting:
    if task == "lenet":
        return Setting("rankwise", LENET_RANK, 0.0, 0, STEPS[task])
    return ours(task, STEPS[task], 0)


def mean(records: list[dict[str, Any]], measure: str) -> float:
    value = statistics.fmean(r[measure] for r in records)
    return value if value == value else float("inf")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
