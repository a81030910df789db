"""`make compare`: rankwise against its peers on the demo's task and on a language model.

Every run is a process of its own with one thread; `--workers` of them at a time. Records are kept
in `--output`, so that an interrupted benchmark goes on where it stopped. First each peer's rate is
chosen on seed 0, by validation loss, over a grid that is extended until the best is not at its
edge; then the other seeds run at that rate. rankwise runs at its default rate, the same everywhere,
and is not tuned.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from cost.contenders import ADAPTING
from cost.model import STANDARD
from figures import draw
from methods import Setting
from pool import Pool
from results import read_records
from tables import Key, by_setting, initial_ranks, markdown, rate_curve

from rankwise.optim.trust import DEFAULT_LR

GRID = (5e-4, 1e-3, 2e-3, 4e-3)
FULL_GRID = (3e-5, 1e-4, 3e-4, 1e-3)
PEERS = ("LoRA", "rsLoRA", "DoRA", "PiSSA", "AdaLoRA", "full")
LORA_RANKS = (2, 4, 8)
INITIAL_RANK = {"reviews": 8, "language": 5}
"""Of rankwise; it ends with half the parameters: LoRA's r = 8 and half of it, or a third of it."""
INITIAL_RANKS = (2, 8, 32)
TOLERANCE = 0.3
RATE_RANGE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@dataclass(frozen=True)
class Options:
    """Compare rankwise with its peers."""

    output: Path = Path("runs/bench")
    """Folder of the records, tables and figures."""
    task: str = "reviews"
    """reviews or language."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    """Steps of a run; default 150 on the reviews, 50 on the language model."""
    peers: tuple[str, ...] = PEERS
    bfloat16: bool = True
    """Products in bfloat16 (autocast), for all methods alike."""
    workers: int = 2
    ranges: bool = True
    """Also the range of rates and of initial ranks."""
    costs: Path = Path("runs/cost/cost.json")
    """Of `make bench`, for losses over seconds; without it each run's own seconds are shown."""


def ours(task: str, steps: int, seed: int) -> Setting:
    """rankwise as it comes: default rate and, as on the command line, half the start as budget."""
    rank = INITIAL_RANK[task]
    return Setting("rankwise", rank, DEFAULT_LR, seed, steps, mean_rank=rank / 2)


def by_tolerance(steps: int, seed: int) -> Setting:
    return Setting("rankwise", 8, DEFAULT_LR, seed, steps, rtol=TOLERANCE)


def tuned(pool: Pool, trials: list[Setting]) -> Setting:
    """The trial of the lowest validation loss; their rates ascend, by factors of 2 at the ends."""
    pool.run(trials)
    best = min(trials, key=lambda s: finite(pool.record(s)["eval_loss"]))
    if best is trials[0]:
        return tuned(pool, [replace(best, lr=best.lr / 2), *trials])
    if best is trials[-1]:
        return tuned(pool, [*trials, replace(best, lr=best.lr * 2)])
    return best


def finite(loss: float) -> float:
    return loss if loss == loss else float("inf")


def main(options: Options) -> None:
    steps = options.steps or {"reviews": 150, "language": 50}[options.task]
    pool = Pool(options.output, options.task, options.bfloat16, options.workers)
    first, seeds = options.seeds[0], options.seeds
    pool.run(ours(options.task, steps, seed) for seed in seeds)
    for method in options.peers:
        ranks = LORA_RANKS if method == "LoRA" and options.task == "reviews" else (8,)
        grid = FULL_GRID if method == "full" else GRID
        for rank in ranks:
            best = tuned(pool, [Setting(method, rank, lr, first, steps) for lr in grid])
            pool.run(replace(best, seed=seed) for seed in seeds)
    if options.ranges:
        pool.run(replace(ours(options.task, steps, first), lr=lr) for lr in RATE_RANGE)
        pool.run(Setting("LoRA", 8, lr, first, steps) for lr in RATE_RANGE)
        pool.run(
            replace(setting, rank=rank)
            for seed in seeds
            for setting in (ours(options.task, steps, seed), by_tolerance(steps, seed))
            for rank in INITIAL_RANKS
        )
    report(options)


def report(options: Options) -> None:
    """Write table and picture of all records of the task."""
    records = [
        r
        for r in read_records(options.output)
        if r["task"] == options.task and r["bfloat16"] == options.bfloat16
    ]
    rank = INITIAL_RANK[options.task]
    default = Key("rankwise", rank, DEFAULT_LR)
    table = markdown(records, default)
    (options.output / f"{options.task}.md").write_text(table)
    draw(records, options.output / f"{options.task}.png", default, _step_times(options))
    print(table)
    if options.ranges:
        groups = by_setting(records)
        curves = {
            method: rate_curve(groups, method, start, options.seeds[0], "train_loss")
            for method, start in (("rankwise", rank), ("LoRA", 8))
        }
        best = min(loss for curve in curves.values() for _, loss in curve)
        for method, curve in curves.items():
            rates = [lr for lr, loss in curve if loss <= 1.05 * best]
            span = f"from {min(rates):g} to {max(rates):g}" if rates else "nowhere"
            print(f"{method}: training loss within 5 % of the best of both {span}")
        print(initial_ranks(groups, DEFAULT_LR))


def _step_times(options: Options) -> dict[str, float] | None:
    """Seconds a step from the cost suite, where all take turns: its standard case, the reviews."""
    if options.task != "reviews" or not options.costs.exists():
        return None
    rows = json.loads(options.costs.read_text()).get("model", [])
    found = {r["contender"]: r["seconds"] for r in rows if r["case"] == STANDARD.label}
    return {**found, "rankwise": found[ADAPTING]} if ADAPTING in found else None


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
