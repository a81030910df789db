"""The level of models: what a training step takes, and of what, beside LoRA and the floor."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cost.contenders import ADAPTING, CONTENDERS, CORE, FLOOR, REFERENCE
from cost.footprint import Footprint, footprint, footprint_of
from cost.steps import Course, courses
from cost.summaries import quartiles, ratio_of_sums, ratios
from cost.workloads import WORKLOADS, Workload

CYCLE = 25
"""Steps to the first cut of the ranks."""
ENOUGH = 3
"""Rounds, for a median."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, the shape of its batch, and the rank of all contenders at the start."""

    workload: str
    rows: int
    length: int
    """Tokens, or pixels a side."""
    rank: int
    contenders: tuple[str, ...] = CORE

    @property
    def label(self) -> str:
        return f"{self.workload} {self.rows}x{self.length}, r = {self.rank}"


GRID = {
    "MiniLM": ((4, 40), (16, 40), (16, 128)),
    "SmolLM2": ((1, 128), (2, 128)),
    "ViT": ((4, 224), (32, 64)),
}
RANKS = (8, 16, 64)
STANDARD = Case("MiniLM", 16, 40, 8, tuple(CONTENDERS))
"""All contenders; the reviews of `finetune.py`."""
CASES = tuple(
    STANDARD if shape == (16, 40) and rank == STANDARD.rank else Case(name, *shape, rank)
    for name, shapes in GRID.items()
    for shape in shapes
    for rank in RANKS
)
QUICK = (Case("MiniLM", 16, 40, 8, (REFERENCE, FLOOR, ADAPTING, "AdaLoRA", "DoRA")),)


@dataclass(frozen=True)
class Plan:
    """How long is measured."""

    rounds: int = 2 * CYCLE
    sit_out: int = 5
    """Contenders of constant cost take every fifth round."""
    footprint_steps: int = 4


def measure(case: Case, plan: Plan, device: torch.device) -> list[Row]:
    """One row a contender."""
    workload = WORKLOADS[case.workload](case.rows, case.length, device)
    builders = {name: CONTENDERS[name] for name in case.contenders}
    found = courses(workload, builders, case.rank, plan.rounds, plan.sit_out)
    return rows_of(case, found, workload, footprint_steps=plan.footprint_steps)


def rows_of(
    case: Case, found: Mapping[str, Course], workload: Workload, *, footprint_steps: int
) -> list[Row]:
    """Times of all courses, and bytes at the start of a run and at its end."""
    first = {
        name: footprint(workload, CONTENDERS[name], case.rank, footprint_steps) for name in found
    }
    last = dict(first)
    # Those whose ranks have changed since.
    for name, course in found.items():
        if course.parameters[-1] != course.parameters[0]:
            last[name] = footprint_of(course.arm, workload, footprint_steps)
    reference = first[REFERENCE]
    return [
        {
            **_of_case(case),
            **times(name, found),
            "bytes": first[name]._asdict(),
            "bytes after": last[name]._asdict(),
            "bytes to LoRA": {
                part: getattr(first[name], part) / getattr(reference, part)
                for part in Footprint._fields
            },
        }
        for name in found
    ]


def times(name: str, found: Mapping[str, Course]) -> Row:
    """Seconds of one contender, and what they are in units of others'.

    `to LoRA` has the quartiles of the ratios within rounds, `to LoRA, whole run` is the ratio of
    sums over the rounds, first steps and cuts of ranks included, `to LoRA, steady` the median after
    the first cycle, None where too few rounds are. `overhead` is what the adapter adds to the
    frozen model, in units of what LoRA's adds; `geometry` what its optimizer does beyond AdamW, as
    a share of the step.
    """
    own, reference, floor = (found[n] for n in (name, REFERENCE, FLOOR))
    totals, of_reference = own.totals(), reference.totals()
    whole = ratio_of_sums(totals, of_reference)
    at_floor = ratio_of_sums(floor.totals(), of_reference)
    later = ratios({i: t for i, t in totals.items() if i > CYCLE}, of_reference)
    seconds = list(own.rounds.values())
    geometry = sum(s.optimizer - s.stock for s in seconds if s.stock)
    return {
        "contender": name,
        "seconds": statistics.median(totals.values()),
        "phases": {
            phase: statistics.median(getattr(s, phase) for s in seconds)
            for phase in ("forward", "backward", "optimizer")
        },
        "steps": len(seconds),
        "to LoRA": quartiles(ratios(totals, of_reference)),
        "to LoRA, whole run": whole,
        "to LoRA, steady": statistics.median(later) if len(later) >= ENOUGH else None,
        "to frozen": statistics.median(ratios(totals, floor.totals())),
        "overhead": (whole - at_floor) / (1 - at_floor) if at_floor != 1 else None,
        "geometry": geometry / sum(s.total for s in seconds),
        "parameters": {"start": own.parameters[0], "end": own.parameters[-1]},
    }


def _of_case(case: Case) -> Row:
    row = asdict(case)
    del row["contenders"]
    return {"case": case.label, **row}
