"""The level of runs: how long until LoRA's end loss, by runs of fewer steps of the same schedule.

Times of processes of their own cannot be compared on a machine with other work. So the runs give
losses over steps, and seconds a step are from rounds in which both take turns.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from finetune import GRID, ours, tuned
from methods import Setting
from pool import Pool
from tasks import TASKS

from cost.contenders import FLOOR, REFERENCE, by_setting, frozen
from cost.model import times
from cost.steps import courses
from cost.workloads import WORKLOADS

WORKLOAD = {"reviews": ("MiniLM", 16, 40), "language": ("SmolLM2", 2, 128)}
MEASURES = {"train_loss": "training", "eval_loss": "validation"}
OURS = "rankwise"
LORA_RANK = 8
Record = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Of LoRA's steps, for rankwise."""
    rates: tuple[float, ...] = GRID
    """LoRA's; a single one is taken as it is, of more the best is searched on the first seed."""
    steps: dict[str, int] | None = None
    """By task; None: those of the task."""
    rounds: int = 50
    """For the seconds a step."""
    workers: int = 1
    bfloat16: bool = False


def measure(task: str, plan: Plan, folder: Path, device: torch.device) -> Row:
    """Runs of both, seconds a step of both, and what follows."""
    pool = Pool(folder, task, plan.bfloat16, plan.workers)
    steps = TASKS[task].steps if plan.steps is None else plan.steps[task]
    lora = reference(pool, plan, steps)
    arms = {f"{share:g}": shortened(task, steps, share) for share in plan.shares}
    pool.run(replace(s, seed=seed) for s in (lora, *arms.values()) for seed in plan.seeds)
    tail = TASKS[task].tail / TASKS[task].steps

    def summary(setting: Setting) -> Row:
        records = [pool.record(replace(setting, seed=seed)) for seed in plan.seeds]
        return {"steps": setting.steps, **ends(records, tail), "losses": mean_losses(records)}

    seconds = seconds_a_step(task, lora, arms[max(arms, key=float)], plan.rounds, device)
    runs = {share: summary(setting) for share, setting in arms.items()}
    of_lora = summary(lora)
    return {
        "task": task,
        "seeds": len(plan.seeds),
        "rate": lora.lr,
        "seconds a step": seconds,
        "LoRA": of_lora,
        "rankwise": runs,
        "reaches": reaches(of_lora, runs, seconds[OURS] / seconds[REFERENCE]),
    }


def reference(pool: Pool, plan: Plan, steps: int) -> Setting:
    """LoRA at its best rate."""
    trials = [Setting("LoRA", LORA_RANK, lr, plan.seeds[0], steps) for lr in plan.rates]
    return trials[0] if len(trials) == 1 else tuned(pool, trials)


def shortened(task: str, steps: int, share: float) -> Setting:
    """rankwise as it comes, its schedule squeezed into a share of the steps."""
    return ours(task, round(share * steps), 0)


def ends(records: list[Record], tail: float) -> dict[str, float]:
    """Mean over seeds: of the last part `tail` of the training losses, and on held-out data."""
    last = [record["losses"][-max(1, round(tail * len(record["losses"]))) :] for record in records]
    return {
        "train_loss": statistics.fmean(statistics.fmean(losses) for losses in last),
        "eval_loss": statistics.fmean(record["eval_loss"] for record in records),
    }


def mean_losses(records: list[Record]) -> list[float]:
    """Over seeds, at each step that all have."""
    return [
        statistics.fmean(at) for at in zip(*(record["losses"] for record in records), strict=False)
    ]


def reaches(lora: Row, runs: dict[str, Row], to_lora: float) -> dict[str, float | None]:
    """For each measure and for all: the share of LoRA's time after which its end loss is reached.

    `to_lora` is the ratio of seconds a step. None: by none of the runs.
    """

    def shortest(measures: Sequence[str]) -> float | None:
        enough = [run for run in runs.values() if all(run[m] <= lora[m] for m in measures)]
        if not enough:
            return None
        return min(run["steps"] for run in enough) / lora["steps"] * to_lora

    each = {name: shortest([measure]) for measure, name in MEASURES.items()}
    return {**each, "both": shortest(list(MEASURES))}


def seconds_a_step(
    task: str, lora: Setting, own: Setting, rounds: int, device: torch.device
) -> dict[str, float]:
    """LoRA's median; rankwise's is that times the ratio over whole cycles."""
    builders = {REFERENCE: by_setting(lora), FLOOR: frozen, OURS: by_setting(own)}
    name, rows, length = WORKLOAD[task]
    found = courses(WORKLOADS[name](rows, length, device), builders, own.rank, rounds, 1)
    of_lora = times(REFERENCE, found)["seconds"]
    return {REFERENCE: of_lora, OURS: of_lora * times(OURS, found)["to LoRA, whole run"]}
