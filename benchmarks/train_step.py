"""Seconds of a training step in low rank and dense: one thread, alternating, medians.

An MLP of 784 inputs and three hidden layers of one width; the map to ten classes is dense in all.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from alternating import alternate  # noqa: E402
from latency import mlp, ranks_at  # noqa: E402
from tables import table  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

import rankwise as rw  # noqa: E402
from rankwise.init import Random  # noqa: E402

BATCH = 128
CYCLE = 5
"""Steps that are timed together, and between two steps in which bases move."""
DENSE = {"AdamW": {}, "AdamW, foreach": {"foreach": True}, "AdamW, fused": {"fused": True}}
"""Of torch; the first is its default on a CPU, a loop over tensors."""
COLOURS = ("#999999", "#e69f00", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Options:
    """Time training steps of MLPs over their width."""

    output: Path = Path("runs/train_step")
    """Folder of the table, the numbers and the curve."""
    widths: tuple[int, ...] = (512, 1024, 2048, 4096)
    shares: tuple[float, ...] = (0.05, 0.1)
    """Of the weights of each layer."""
    seconds: float = 30.0
    """Spent on each width."""


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """`CYCLE` whole steps on a batch that stays the same: one in which bases move, for some."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, 784, generator=draw), torch.randint(10, (BATCH,), generator=draw)

    def steps() -> None:
        for _ in range(CYCLE):
            cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def contenders(width: int, shares: tuple[float, ...]) -> dict[str, Callable[[], None]]:
    steps = {}
    for name, options in DENSE.items():
        model = mlp(784, width, width, width, 10)
        steps[name] = stepper(model, torch.optim.AdamW(model.parameters(), lr=1e-4, **options))
    parallel = rw.integrators.ParallelBUG()
    resting = rw.integrators.BasisEvery(parallel, every=CYCLE)
    for share in shares:
        for note, integrator in (("", parallel), (f", bases every {CYCLE}", resting)):
            model = mlp(784, width, width, width, 10)
            rw.factorize_(model, rank=ranks_at(model, share), init=Random())
            optimizer = rw.Optimizer(model, rank_rule=rw.FixedRank(), integrator=integrator)
            steps[f"rankwise, {share:.0%}{note}"] = stepper(model, optimizer)
    return steps


def rows(results: Mapping[int, Mapping[str, float]]) -> Iterator[list[str]]:
    """Milliseconds, and the fastest dense step in units of each low-rank one."""
    names = list(next(iter(results.values())))
    low = [name for name in names if name not in DENSE]
    yield ["width", *(f"{name}, ms" for name in names), *(f"{name}: times faster" for name in low)]
    for width, seconds in results.items():
        best = min(seconds[name] for name in DENSE)
        cells = [f"{1e3 * seconds[name]:.3g}" for name in names]
        yield [str(width), *cells, *(f"{best / seconds[name]:.2f}" for name in low)]


def draw(results: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Write a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=130)
    axes = figure.subplots()
    for name, colour in zip(next(iter(results.values())), COLOURS, strict=False):
        times = [1e3 * seconds[name] for seconds in results.values()]
        axes.loglog(list(results), times, marker="o", color=colour, label=name)
    axes.set_xticks(list(results), list(map(str, results)))
    axes.minorticks_off()
    axes.set_xlabel("width of the three hidden layers")
    axes.set_ylabel("milliseconds a training step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    for width in options.widths:
        seconds = alternate(contenders(width, options.shares), seconds=options.seconds)
        results[width] = {name: value / CYCLE for name, value in seconds.items()}
        print(*list(rows({width: results[width]}))[1], sep="  ", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "train_step.json").write_text(json.dumps(results, indent=1))
    (options.output / "train_step.md").write_text(table(list(rows(results))))
    draw(results, options.output / "train_step.png")
    print(table(list(rows(results))))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
