"""How much the rate and the initial rank matter: every integrator, and two factors with Adam.

A network 784 - 256 - 256 - 10 on 4000 handwritten digits, accuracy on 1000 others after 300 steps
of 64 rows with a rate that falls linearly to zero; mean over seeds. First the rate, at rank 16,
then the rank, each method at its best rate. Integrators take plain gradient steps, so that nothing
but the integrator differs; beside them Adam with ranks by a tolerance and bounded steps, as the
library has it, and steps without a rate.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tables import table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import rankwise as rw
from rankwise.recipes.digits import Digits, low_rank_perceptron, mnist_5k
from rankwise.recipes.study import INTEGRATORS, WIDTH

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
RANKS = (2, 4, 8, 16, 32, 64, 100)
RANK, BATCH, LONGEST = 16, 64, 0.02
TWO_FACTORS = "two factors, Adam"
ADAPTIVE, RATE_FREE = "rankwise, Adam", "rankwise, rate-free"
COLOURS = {
    "parallel": "#0072b2",
    "checked": "#56b4e9",
    "augmented": "#009e73",
    "abc-psi": "#cc79a7",
    "bug": "#e69f00",
    "ksl": "#f0e442",
    TWO_FACTORS: "#d55e00",
    ADAPTIVE: "#000000",
    RATE_FREE: "#777777",
}
Curve = dict[str, list[float]]


@dataclass(frozen=True)
class Options:
    """Measure accuracy over the rate and over the initial rank."""

    output: Path = Path("runs/robustness")
    """Folder of the table, the figure and the numbers."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300


def main(options: Options) -> None:
    torch.set_num_threads(1)
    data = {seed: mnist_5k(seed) for seed in options.seeds}
    methods = [*INTEGRATORS, TWO_FACTORS, ADAPTIVE, RATE_FREE]

    def mean(method: str, rank: int, lr: float) -> float:
        runs = [accuracy(method, rank, lr, seed, data[seed], options.steps) for seed in data]
        print(
            f"{method:20s} rank {rank:<4d} rate {lr:<7g} {statistics.fmean(runs):.1%}", flush=True
        )
        return statistics.fmean(runs)

    over_rate: Curve = {m: [mean(m, RANK, lr) for lr in RATES] for m in methods if m != RATE_FREE}
    best = {m: RATES[curve.index(max(curve))] for m, curve in over_rate.items()} | {RATE_FREE: 1.0}
    over_rank: Curve = {m: [mean(m, rank, best[m]) for rank in RANKS] for m in methods}
    over_rate[RATE_FREE] = [over_rank[RATE_FREE][RANKS.index(RANK)]] * len(RATES)
    options.output.mkdir(parents=True, exist_ok=True)
    numbers = {"rates": RATES, "over_rate": over_rate, "ranks": RANKS, "over_rank": over_rank}
    (options.output / "metrics.json").write_text(json.dumps({**numbers, "best": best}, indent=1))
    text = tables(over_rate, over_rank)
    (options.output / "robustness.md").write_text(text)
    draw(over_rate, over_rank, options.output / "robustness.png")
    print(text)


def accuracy(method: str, rank: int, lr: float, seed: int, data: Digits, steps: int) -> float:
    """Of one run; that of a network which has diverged is what it is."""
    model, optimizer = contender(method, rank, lr, seed)
    draw = torch.Generator().manual_seed(seed)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        rows = torch.randint(len(data.digits), (BATCH,), generator=draw)

        def closure(rows: Tensor = rows) -> Tensor:
            loss = cross_entropy(model(data.images[rows]), data.digits[rows])
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        right = model(data.held_out_images).argmax(1) == data.held_out_digits
    return float(right.float().mean())


def contender(
    method: str, rank: int, lr: float, seed: int
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = low_rank_perceptron(rank, WIDTH, seed)
    rule = rw.Tolerance(rtol=0.1, every=30)
    if method == TWO_FACTORS:
        model = factors_apart(model)
        return model, torch.optim.Adam(model.parameters(), lr)
    if method == ADAPTIVE:
        return model, rw.Optimizer(model, lr=lr, max_step=LONGEST, rank_rule=rule)
    if method == RATE_FREE:
        return model, rw.Optimizer(model, control=rw.RateFree(), rank_rule=rule)
    integrator = INTEGRATORS[method]
    plain = {"rule": rw.SGD(), "max_step": float("inf")}
    return model, rw.Optimizer(model, lr=lr, integrator=integrator, **plain)


def factors_apart(model: nn.Sequential) -> nn.Sequential:
    """The same network with each low-rank map as two linear ones."""
    parts: list[nn.Module] = []
    for part in model:
        if not isinstance(part, rw.LowRankLinear):
            parts.append(part)
            continue
        f = part.factors()
        root = f.S.diagonal().sqrt()
        inner = nn.Linear(f.shape[1], f.rank, bias=False)
        outer = nn.Linear(f.rank, f.shape[0])
        with torch.no_grad():
            inner.weight.copy_(root[:, None] * f.V.mT)
            outer.weight.copy_(f.U * root)
            outer.bias.copy_(part.bias)
        parts += [inner, outer]
    return nn.Sequential(*parts)


def tables(over_rate: Curve, over_rank: Curve) -> str:
    return table(lines("rate", RATES, over_rate)) + "\n" + table(lines("rank", RANKS, over_rank))


def lines(what: str, values: Sequence[float], curves: Curve) -> list[list[str]]:
    rows = [[name, *(f"{100 * a:.1f}" for a in curve)] for name, curve in curves.items()]
    return [[what, *(f"{value:g}" for value in values)], *rows]


def draw(over_rate: Curve, over_rank: Curve, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=130)
    axes: Any = figure.subplots(1, 2, sharey=True)
    for panel, values, curves, label in (
        (axes[0], RATES, over_rate, f"learning rate, at rank {RANK}"),
        (axes[1], RANKS, over_rank, "initial rank, each at its best rate"),
    ):
        for index, (name, curve) in enumerate(curves.items()):
            style: dict[str, Any] = {"color": COLOURS[name], "linewidth": 4.5 - 0.4 * index}
            if name == RATE_FREE:
                style["linestyle"] = "--"
            panel.plot(values, [100 * a for a in curve], label=name, **style)
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.minorticks_off()
    axes[0].set_ylabel("accuracy on 1000 held-out digits, %")
    axes[1].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
