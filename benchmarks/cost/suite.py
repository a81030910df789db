"""`make bench`: what low rank costs, beside its peers, in seconds and bytes.

Three levels: layers and the geometry of one; training steps of models; runs until a loss, and from
scratch until an accuracy. All that is compared takes turns in one process with one thread. Writes
`cost.json`, `cost.md` and a picture a level. `--quick` is a short version, `--gate` compares its
ratios with those of `baseline.json` and ends with 1 where one got worse, `--renew` writes that.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The folder of the other benchmarks, of which this one is a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from cost import accuracy, gate, geometry, layer, model, training  # noqa: E402
from cost.machine import machine  # noqa: E402
from cost.pictures import draw  # noqa: E402
from cost.report import report  # noqa: E402

LEVELS = ("layer", "geometry", "model", "training", "scratch")
BASELINE = Path(__file__).with_name("baseline.json")


@dataclass(frozen=True)
class Options:
    """Measure what low rank costs."""

    output: Path = Path("runs/cost")
    """Folder of the numbers, tables, pictures and records of runs."""
    levels: tuple[str, ...] = LEVELS
    only: str = ""
    """Of layers and models the cases alone that have this in their names, such as MiniLM 16x40."""
    quick: bool = False
    """Three minutes: few shapes, MiniLM alone, one short run."""
    gate: bool = False
    """Compare with the baseline; 1 as the end where a ratio got worse."""
    renew: bool = False
    """Make these ratios the baseline."""
    baseline: Path = BASELINE
    device: str = "cpu"


@dataclass(frozen=True)
class Scope:
    """How much of each level is measured."""

    shapes: tuple[layer.Shape, ...] = layer.SHAPES
    layer_seconds: float = 10.0
    sweep: geometry.Sweep = geometry.FULL
    geometry_seconds: float = 5.0
    cases: tuple[model.Case, ...] = model.CASES
    steps: model.Plan = model.Plan()
    tasks: tuple[str, ...] = tuple(training.WORKLOAD)
    runs: training.Plan = training.Plan()
    scratch: accuracy.Plan = accuracy.Plan()

    def only(self, text: str) -> "Scope":
        """The layers and models whose names have `text` in them; all else stays."""
        shapes = tuple(shape for shape in self.shapes if text in shape.label)
        return replace(self, shapes=shapes, cases=tuple(c for c in self.cases if text in c.label))


QUICK = Scope(
    shapes=layer.QUICK,
    layer_seconds=2.0,
    sweep=geometry.QUICK,
    geometry_seconds=0.5,
    cases=model.QUICK,
    steps=model.Plan(rounds=30, sit_out=6, footprint_steps=2),
    tasks=("reviews",),
    runs=training.Plan(seeds=(0,), shares=(0.7,), rates=(1e-3,), steps={"reviews": 10}, rounds=5),
    scratch=accuracy.Plan(widths=(1024,), rates=(1e-3,), shares=(0.05,), target=0.7),
)


def levels(
    scope: Scope, folder: Path, device: torch.device
) -> dict[str, Callable[[], Iterator[Any]]]:
    """By level: what measures it, a part after the other."""
    return {
        "layer": lambda: (
            row
            for shape in scope.shapes
            for row in layer.measure(shape, scope.layer_seconds, device)
        ),
        "geometry": lambda: iter([geometry.measure(scope.sweep, scope.geometry_seconds, device)]),
        "model": lambda: (
            row for case in scope.cases for row in model.measure(case, scope.steps, device)
        ),
        "training": lambda: (
            training.measure(task, scope.runs, folder / "runs", device) for task in scope.tasks
        ),
        "scratch": lambda: (
            accuracy.measure(width, scope.scratch, device) for width in scope.scratch.widths
        ),
    }


def main(options: Options) -> int:
    """Measure, write, and judge; the end of the process."""
    unknown = set(options.levels) - set(LEVELS)
    if unknown:
        raise ValueError(f"--levels are {', '.join(LEVELS)}; got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    scope = (QUICK if options.quick else Scope()).only(options.only)
    results: dict[str, Any] = {"machine": machine(device), "quick": options.quick}
    measures = levels(scope, options.output, device)
    for level in options.levels:
        found = []
        for part in measures[level]():
            found.append(part)
            print(level, part.get("case", ""), part.get("contender", ""), flush=True)
            results[level] = part if level == "geometry" else found
            write(results, options.output)
    print(report(results))
    return judged(results, options)


def write(results: dict[str, Any], folder: Path) -> None:
    """After each part, so that an interrupted suite leaves what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "cost.part"
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(folder / "cost.json")
    (folder / "cost.md").write_text(report(results))


def judged(results: dict[str, Any], options: Options) -> int:
    """0, or 1 where the gate is closed."""
    draw(results, options.output)
    ratios = gate.ratios_of(results)
    if options.renew:
        content = {"machine": results["machine"], "ratios": ratios}
        options.baseline.write_text(json.dumps(content, indent=1) + "\n")
    if not options.gate:
        return 0
    changes = gate.compare(json.loads(options.baseline.read_text())["ratios"], ratios)
    print(gate.as_table(changes))
    return 1 if gate.failures(changes) else 0


if __name__ == "__main__":
    import tyro

    raise SystemExit(main(tyro.cli(Options)))
