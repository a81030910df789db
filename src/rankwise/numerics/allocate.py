"""Sharing one budget between layers, each of which can be cut to any rank or stay whole."""

import heapq
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class Option(NamedTuple):
    """One way to have a layer: what it costs, and the loss that it adds."""

    cost: float
    loss: float
    rank: int
    """0: whole."""


def options(energies: Sequence[float], *, direction: float, whole: float) -> list[Option]:
    """The ways to have a layer that no mixture of two others beats, by ascending cost.

    They are the lower convex hull of (cost, loss): along it, what a further cost saves in loss
    falls, so that a greedy choice is an optimal one. The rank at which factors cost as much as the
    whole weight is never among them, and a cut that saves little seldom is.

    Args:
        energies: loss that dropping each direction adds, descending.
        direction: cost of one direction in factors.
        whole: cost of the weight as it is, which adds no loss.
    """
    tails = [*accumulate(reversed(energies))][::-1]
    hull: list[Option] = []
    cuts = [
        Option(rank * direction, tails[rank] if rank < len(tails) else 0.0, rank)
        for rank in range(1, len(energies) + 1)
        if rank * direction < whole
    ]
    for option in [*cuts, Option(whole, 0.0, 0)]:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def allocate(layers: Sequence[Sequence[Option]], budget: float) -> list[Option]:
    """An option for each layer, of least total loss within a total cost of `budget`.

    Steps along the hulls are taken in the order of the loss that a unit of cost saves; what does
    not fit any more is left out. The loss is at most that of one step above the optimum. Every
    layer has its cheapest option even where the budget is too small for that.
    """
    at = [0] * len(layers)
    spent = sum(hull[0].cost for hull in layers)
    steps = [(_slope(*hull[:2]), i) for i, hull in enumerate(layers) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, i = heapq.heappop(steps)
        hull = layers[i]
        extra = hull[at[i] + 1].cost - hull[at[i]].cost
        if spent + extra > budget:
            continue
        spent += extra
        at[i] += 1
        if at[i] + 1 < len(hull):
            heapq.heappush(steps, (_slope(hull[at[i]], hull[at[i] + 1]), i))
    return [hull[place] for hull, place in zip(layers, at, strict=True)]


def _slope(a: Option, b: Option) -> float:
    return (b.loss - a.loss) / (b.cost - a.cost)
