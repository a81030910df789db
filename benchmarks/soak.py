"""A long run under everything that could wear it out: does memory grow, do bases or weights drift?

Four parts, each in a process of its own: the run of `soak_run` in float32 under bfloat16 autocast,
its first quarter in float64, and the two of `soak_drift`. Ends with 1 where a bound is broken.
"""

import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import soak_drift
import torch
from soak_run import Course, run
from tables import table

from rankwise.report.machine import versions

DRIFT = 1.2e-7
"""The eps of float32: less than that a step may move a matrix that should stay where it is."""
CYCLE = 25
"""Of a rank rule, by default."""


@dataclass(frozen=True)
class Options:
    """Train for a long time and look for wear."""

    output: Path = Path("runs/soak")
    """Folder of metrics.json, the table and the picture."""
    seed: int = 0
    steps: int = 20_000
    workers: int = 2
    """Parts at a time."""


class Check(NamedTuple):
    """A measure, and the bound that it has to stay below."""

    what: str
    measured: float
    bound: float

    @property
    def holds(self) -> bool:
        # A NaN holds nothing.
        return self.measured < self.bound


def parts(steps: int, seed: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """200 samples and 20 restarts; in float64 the first quarter."""
    every, restart = max(steps // 200, CYCLE), max(steps // 20, CYCLE)
    single = Course(steps, seed, torch.float32, every, restart)
    double = Course(steps // 4, seed, torch.float64, every, restart)
    return {
        "float32": partial(run, single),
        "float64": partial(run, double),
        "still": partial(soak_drift.still, steps, seed, every),
        "twins": partial(soak_drift.twins, steps, seed, every),
    }


def checks(results: Mapping[str, Any]) -> list[Check]:
    single, double = results["float32"], results["float64"]
    resident = settled(single, "resident_bytes")
    begin, end = (statistics.median(part) for part in (resident[:10], resident[-10:]))
    live = settled(single, "live_tensors")
    half = len(live) // 2
    losses = [statistics.fmean(part) for part in both_losses(single, double)]
    still, twins = results["still"]["samples"], results["twins"]["samples"]
    changes = single["samples"][-1]["step"] / max(single["rank_changes"], 1)
    return [
        Check("growth of resident memory", end / begin - 1, 0.01),
        Check("tensors more than before", max(live[half:]) - max(live[:half]), 1),
        Check("restart: change of outputs", max(single["restart_gap"], double["restart_gap"]),
              torch.finfo(torch.float32).tiny),
        Check("steps skipped", single["skipped"] + double["skipped"], 1),
        Check("what the guard has mended", sum(map(mended, (single, double))), 1),
        Check("steps from one change of ranks to the next", changes, CYCLE + 1),
        Check("defect of bases in float32", max(s["defect"] for s in single["samples"]), 1e-5),
        Check("defect of bases in float64", max(s["defect"] for s in double["samples"]), 1e-13),
        Check("mean loss, float32 to float64", abs(losses[0] / losses[1] - 1), 0.02),
        Check("rate 0: drift of W a step", still[-1]["drift"] / still[-1]["step"], DRIFT),
        Check("twins: gap of W", max(s["gap"] for s in twins), 1e-4),
        Check("twins: defect of bases", max(s["defect"] for s in twins), 1e-5),
    ]  # fmt: skip


def mended(course: Mapping[str, Any]) -> int:
    """Bases repaired, SVDs by another route, and returns to an older state."""
    return sum(course["incidents"][kind] for kind in ("repaired", "detours", "rewound"))


def settled(course: Mapping[str, Any], what: str) -> list[float]:
    """A measure from a tenth of the steps on."""
    samples = course["samples"]
    return [sample[what] for sample in samples if sample["step"] >= samples[-1]["step"] / 10]


def both_losses(
    single: Mapping[str, Any], double: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    """Of the same steps: those of the shorter run, without its first tenth."""
    exact = settled(double, "loss")
    last = len(double["samples"])
    return [s["loss"] for s in single["samples"][last - len(exact) : last]], exact


def as_table(found: list[Check]) -> str:
    rows = [[c.what, f"{c.measured:.2g}", f"{c.bound:.2g}", "" if c.holds else "broken"]
            for c in found]  # fmt: skip
    return table([["measure", "measured", "bound", ""], *rows])


def one_thread() -> None:
    torch.set_num_threads(1)


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, spawn, one_thread, max_tasks_per_child=1) as pool:
        jobs = parts(options.steps, options.seed)
        running = {name: pool.submit(job) for name, job in jobs.items()}
        results = {name: job.result() for name, job in running.items()}
    found = checks(results)
    told = {
        "checks": [c._asdict() | {"holds": c.holds} for c in found],
        "parts": results,
        "steps": options.steps,
        "seed": options.seed,
        "versions": versions(("torch", "safetensors")),
    }
    from soak_figure import draw

    draw(results, options.output / "soak.png")
    (options.output / "soak.md").write_text(as_table(found))
    (options.output / "metrics.json").write_text(json.dumps(told, indent=1))
    print(as_table(found))
    if not all(c.holds for c in found):
        raise SystemExit(1)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
