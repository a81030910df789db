"""From which ranks a network starts, and by which rule they come down to what it may hold."""

from typing import NamedTuple

from torch import nn

from rankwise.optim.budget import Budget
from rankwise.optim.rank_rule import CycledRank
from rankwise.optim.tolerance import Tolerance
from rankwise.surgery.factorize import plan_factorize
from rankwise.surgery.ranks import break_even

START = 3.0
"""Parameters of the start over those of the budget."""
FEWEST = 16
"""A layer with fewer rows or columns stays dense: it is small, and needs all its directions."""
CYCLE, KEEP = 100, 0.9
LEAST_CYCLES = 10

Shape = tuple[int, int]


class Start(NamedTuple):
    """Ranks of the layers that become low rank, and the parameters left to their factors."""

    ranks: dict[str, int]
    shapes: dict[str, Shape]
    """(out, in) of each weight as a matrix; layers that share one are there once."""
    budget: int

    @property
    def weights(self) -> int:
        """Numbers in the dense weights of these layers."""
        return sum(m * n for m, n in self.shapes.values())


def start_for(model: nn.Module, share: float) -> Start:
    """One rank for all layers, capped where dense is smaller, with `START` times the budget.

    What stays dense counts: the budget of the factors is what `share` of all parameters leaves.
    Raises ValueError where that is less than one direction a layer, or there is no layer.
    """
    planned = plan_factorize(model, rank=1, min_features=FEWEST)
    if not planned.factorized:
        raise ValueError(
            f"the network has no layer of at least {FEWEST} rows and columns that can be low rank"
        )
    shapes = {x.name: (x.shape[0], x.shape[1]) for x in planned.factorized if x.weights}
    dense = planned.total - sum(m * n for m, n in shapes.values())
    budget = int(share * planned.total) - dense
    least = sum(map(_cost, shapes.values()))
    if budget < least:
        raise ValueError(
            f"--keep must be at least {(dense + least) / planned.total:.3g} here: {dense:,} of "
            f"{planned.total:,} parameters stay dense, and one direction in each of {len(shapes)} "
            f"layers takes {least:,}"
        )
    rank = 1
    while rank < max(map(min, shapes.values())):
        if sum(_capped(rank + 1, s) * _cost(s) for s in shapes.values()) > START * budget:
            break
        rank += 1
    ranks = {x.name: _capped(rank, (x.shape[0], x.shape[1])) for x in planned.factorized}
    return Start(ranks, shapes, budget)


def rank_rule(start: Start, steps: int, tolerance: float | None) -> CycledRank:
    """A tenth less in each cycle; in a short run more, so that half of it suffices."""
    every = min(CYCLE, max(2, steps // (2 * LEAST_CYCLES)))
    if tolerance is not None:
        return Tolerance(rtol=tolerance, every=every)
    cycles = max(1, steps // (2 * every))
    return Budget(parameters=start.budget, every=every, keep=min(KEEP, START ** (-1 / cycles)))


def _cost(shape: Shape) -> int:
    """Parameters of one direction, as a rank rule counts them."""
    return sum(shape) + 1


def _capped(rank: int, shape: Shape) -> int:
    return min(rank, max(1, break_even(*shape)))
