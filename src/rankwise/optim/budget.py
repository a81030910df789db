"""The rank rule of a budget: all layers compete for one number of parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.numerics.given import check_number
from rankwise.numerics.truncate import ranks_for_budget
from rankwise.optim.rank_rule import Candidates, Clock, CycledRank, check_share, fetch


@dataclass(frozen=True, kw_only=True)
class Budget(CycledRank):
    """The worthiest directions of all layers together, within a number of parameters.

    Among adapters these are those of the largest singular values. Where factors are the whole
    weight (training from scratch), the sizes of two layers mean nothing to each other: there each
    singular value is measured by its layer's norm, and no cycle takes more than half of a rank.

    A start with more parameters than that is cut down gently, by a factor a cycle, for what a
    sudden cut loses has to be learned again. A start with fewer grows until the budget is spent.
    Then ranks rest: to trade directions that are trained for new ones in every cycle costs more
    than it finds.

    The modes of a Tucker kernel compete like layers. Its core counts for both of them by halves,
    which is exact for the ranks it has and too much after a cut: the budget is never exceeded, and
    may be left unspent by a large cut.

    Args:
        parameters: of all low-rank layers together in the end; every layer keeps `min_rank`
            directions even where this is too little for that.
        keep: share of the present parameters that a cycle keeps at least, in (0, 1).
    """

    parameters: int = 0
    keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("Budget(parameters=...)", self.parameters)
        if self.parameters < 1:
            raise ValueError(
                f"`Budget(parameters=...)` must be a positive number of parameters for all layers "
                f"together, got {self.parameters}"
            )
        check_share("Budget(keep=...)", self.keep)

    def room(self, layers: Sequence[Candidates]) -> int:
        # Fuller than this, no layer could keep one direction more on average.
        present = sum(layer.rank * layer.cost for layer in layers)
        missing = self.parameters - present
        return self.grow if missing >= sum(layer.cost for layer in layers) else 0

    def judge(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        worth = fetch([_worth(layer) for layer in layers])
        costs = [layer.cost for layer in layers]
        present = sum(layer.rank * layer.cost for layer in layers)
        budget = max(self.parameters, self.keep * present)
        scores = [w.tolist() for w in worth]
        halves = ((layer.rank + 1) // 2 if layer.whole else 0 for layer in layers)
        least = [max(self.min_rank, half) for half in halves]
        return ranks_for_budget(scores, costs, budget=budget, min_rank=least)


def _worth(layer: Candidates) -> Tensor:
    """What each direction is worth beside those of other layers, descending."""
    if not layer.whole:
        return layer.sigma
    norm = torch.linalg.vector_norm(layer.sigma)
    return layer.sigma / norm.clamp_min(torch.finfo(norm.dtype).tiny)
