"""The job of `rankwise study`: integrators side by side on one problem."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rankwise.integrators import (
    BUG,
    AugmentedBUG,
    AugmentedPSI,
    CheckedBUG,
    Integrator,
    ParallelBUG,
    ProjectorSplitting,
)
from rankwise.io.atomic import write_text
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.tolerance import Tolerance
from rankwise.optim.update_rule import SGD
from rankwise.recipes.digits import Digits, low_rank_perceptron, mnist_5k
from rankwise.recipes.folder import finish
from rankwise.recipes.matrix_problems import descend_on_factors, flow, follow, sensing
from rankwise.recipes.seed import check_seed
from rankwise.recipes.trace import Trace
from rankwise.report.markdown import markdown
from rankwise.report.study_figure import draw_study

INTEGRATORS: dict[str, Integrator] = {
    "parallel": ParallelBUG(),
    "checked": CheckedBUG(),
    "augmented": AugmentedBUG(),
    "abc-psi": AugmentedPSI(),
    "bug": BUG(),
    "ksl": ProjectorSplitting(),
}
STEPS = {"sensing": 200, "flow": 200, "digits": 300}
FIGURE, TABLE = "study.png", "study.md"
BATCH, WIDTH, TAIL = 64, 256, 30
PROBLEMS = ("sensing", "flow", "digits")


@dataclass(frozen=True)
class StudyOptions:
    """Run integrators side by side: loss per gradient and second, ranks, stationarity.

    Without options: matrix sensing from ill-conditioned factors, a few seconds.
    """

    problem: Literal["sensing", "flow", "digits"] = "sensing"
    """sensing: least squares on a matrix. flow: a differential equation with a known solution.
    digits: a small network on 5000 handwritten digits, plain SGD."""
    integrators: tuple[str, ...] = tuple(INTEGRATORS)
    """Which of them: parallel, checked, augmented, abc-psi, bug, ksl."""
    rank: int = 8
    """Rank at the start."""
    rtol: float | None = None
    """Truncate to this tolerance [stay at the starting rank]."""
    smallest: float = 1e-4
    """sensing, flow: smallest singular value of the start; the largest is 1."""
    lr: float = 0.05
    """digits: learning rate."""
    steps: int | None = None
    """Steps [200; digits: 300]."""
    seed: int = 0
    """Of the problem."""
    output: Path = Path("runs/study")
    """Folder for metrics.json, study.png and study.md."""

    def check(self) -> None:
        unknown = [name for name in self.integrators if name not in INTEGRATORS]
        if unknown or not self.integrators:
            raise ValueError(
                f"--integrators {' '.join(unknown) or '(none)'}: choose from "
                f"{', '.join(INTEGRATORS)}"
            )
        if self.problem not in PROBLEMS:
            raise ValueError(f"--problem {self.problem}: choose from {', '.join(PROBLEMS)}")
        if not 1 <= self.rank <= 50:
            raise ValueError(f"--rank must be between 1 and 50, got {self.rank}")
        if self.rtol is not None and not 0.0 < self.rtol < 1.0:
            raise ValueError(f"--rtol must be between 0 and 1, got {self.rtol:g}")
        if not 0.0 < self.smallest <= 1.0:
            raise ValueError(f"--smallest must be in (0, 1], got {self.smallest:g}")
        if not self.lr > 0.0:
            raise ValueError(f"--lr must be positive, got {self.lr:g}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")
        check_seed(self.seed)


def study(options: StudyOptions, say: Callable[[str], None]) -> list[Trace]:
    """Run what was asked for; write the folder's files.

    Raises ValueError for an option that makes no sense.
    """
    options.check()
    steps = options.steps or STEPS[options.problem]
    chosen = {name: INTEGRATORS[name] for name in options.integrators}
    traces = []
    if options.problem == "digits":
        data = mnist_5k(options.seed)
        for name, integrator in chosen.items():
            say(name)
            traces.append(train_digits(name, integrator, data, options, steps))
    else:
        problem = (
            sensing(options.smallest, options.seed)
            if options.problem == "sensing"
            else flow(options.smallest, steps, options.seed)
        )
        for name, integrator in chosen.items():
            say(name)
            rank, rtol = options.rank, options.rtol
            traces.append(follow(name, integrator, problem, rank=rank, rtol=rtol, steps=steps))
        if options.problem == "sensing":
            say("two factors")
            traces.append(descend_on_factors(problem, rank=options.rank, steps=steps))
    _write(options, traces)
    return traces


def train_digits(
    name: str, integrator: Integrator, data: Digits, options: StudyOptions, steps: int
) -> Trace:
    """Plain SGD on the digits, each step by this integrator."""
    model = low_rank_perceptron(options.rank, WIDTH, options.seed)
    rank_rule = FixedRank() if options.rtol is None else Tolerance(rtol=options.rtol)
    optimizer = Optimizer(
        model, lr=options.lr, rule=SGD(), rank_rule=rank_rule, integrator=integrator,
        max_step=float("inf"),
    )  # fmt: skip
    trace, draw = Trace(name), torch.Generator().manual_seed(options.seed)
    for _ in range(steps):
        rows = torch.randint(len(data.digits), (BATCH,), generator=draw)
        norms: list[float] = []

        def closure(rows: Tensor = rows, norms: list[float] = norms) -> Tensor:
            logits = model(data.images[rows])
            loss = torch.nn.functional.cross_entropy(logits, data.digits[rows])
            loss.backward()
            norms.append(float(optimizer.gradient_norm()))
            return loss.detach()

        begin = time.perf_counter()
        loss = optimizer.step(closure)
        optimizer.zero_grad()
        seconds = time.perf_counter() - begin
        ranks = [rank for _, layer in optimizer.layers for rank in layer.ranks]
        trace.add(
            gradients=len(norms),
            seconds=seconds,
            loss=float(loss),
            rank=statistics.fmean(ranks),
            stationarity=norms[0],
        )
    with torch.no_grad():
        right = model(data.held_out_images).argmax(1) == data.held_out_digits
    trace.accuracy = float(right.float().mean())
    return trace


def summary(trace: Trace) -> dict[str, Any]:
    """The numbers of one contender's row."""
    tail = trace.losses[-TAIL:] if trace.accuracy is not None else trace.losses[-1:]
    return {
        "loss": statistics.fmean(tail),
        "gradients": trace.gradients[-1],
        "seconds": trace.seconds[-1],
        "rank": trace.ranks[-1],
        "stationarity": trace.stationarity[-1],
        **({} if trace.accuracy is None else {"accuracy": trace.accuracy}),
    }


def table_of(traces: list[Trace]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the result."""
    rows = []
    for trace in traces:
        s = summary(trace)
        row = [trace.name, f"{s['loss']:.3g}", str(s["gradients"]), f"{s['seconds']:.2f}"]
        row += [f"{s['rank']:.1f}", f"{s['stationarity']:.2g}"]
        rows.append(row + ([f"{s['accuracy']:.1%}"] if "accuracy" in s else []))
    header = ["integrator", "loss", "gradients", "seconds", "rank", "||P(W) G||"]
    return header + ["accuracy"] * (traces[0].accuracy is not None), rows


def _write(options: StudyOptions, traces: list[Trace]) -> None:
    write_text(options.output / TABLE, markdown(*table_of(traces)))
    draw_study(options.problem, traces, options.output / FIGURE)
    metrics = {
        "results": {trace.name: summary(trace) for trace in traces},
        "traces": [asdict(trace) for trace in traces],
        "seed": options.seed,
        "options": {**asdict(options), "output": str(options.output)},
    }
    finish(options.output, metrics, (TABLE, FIGURE))
