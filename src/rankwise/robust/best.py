"""The best adversarial input seen so far, sample by sample."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankwise.robust.ball import per_row
from rankwise.robust.objective import Objective, right


class Best(NamedTuple):
    """Inputs `x` (rows, ...), which of them are misclassified (rows,), and their values (rows,)."""

    x: Tensor
    wrong: Tensor
    value: Tensor

    def or_else(self, other: "Best") -> "Best":
        """Of each row the one that is misclassified; else of the higher value; else the first."""
        higher = (other.value > self.value) | (self.value.isnan() & ~other.value.isnan())
        better = torch.where(self.wrong == other.wrong, higher, other.wrong)
        return Best(
            torch.where(per_row(better, self.x), other.x, self.x),
            self.wrong | other.wrong,
            torch.where(better, other.value, self.value),
        )

    def detach(self) -> "Best":
        return Best(*(t.detach() for t in self))


def judged(model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Best:
    """What `model` makes of the inputs `x`; `objective` says how good they are."""
    logits = model(x)
    return Best(x, ~right(logits, y), objective(logits, y))
