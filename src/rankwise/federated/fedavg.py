"""Federated averaging of whole parameters."""

from dataclasses import dataclass
from typing import ClassVar

from rankwise.federated.local import Local
from rankwise.federated.message import Arrays
from rankwise.federated.outline import Outline
from rankwise.federated.phase import Method, Phase, Rate, check_descent, rate_at


@dataclass(frozen=True)
class TrainDense(Phase):
    """Clients train every parameter; the mean is the new state."""

    lr: Rate
    steps: int
    name: ClassVar[str] = "train"

    def reply_like(self, outline: Outline, known: Arrays) -> Arrays:
        return outline.dense | outline.statistics

    def answer(self, local: Local, outline: Outline, known: Arrays, own: Arrays) -> Arrays:
        local.put(known)
        local.descend(list(outline.dense), self.steps, rate_at(self.lr, local.round), {})
        return local.values([*outline.dense, *outline.statistics])

    def combine(self, outline: Outline, known: Arrays, mean: Arrays, round: int) -> Arrays:
        return mean


@dataclass(frozen=True)
class FedAvg(Method):
    """Clients train all that trains, and the server takes the mean (McMahan et al., 2017).

    Where the data of clients differ and `steps > 1`, the mean of their results is no minimum of
    the common loss. A model that holds LoRA's `A` and `B` as parameters is averaged as
    `FactorAverage` does it, which is wrong.

    Args:
        lr: of plain gradient descent, > 0, or a function of the number of the round.
        steps: local ones in a round, >= 1.
    """

    lr: Rate = 0.01
    steps: int = 10

    def __post_init__(self) -> None:
        check_descent("FedAvg", self.lr, self.steps)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (TrainDense(self.lr, self.steps),)

    def check(self, outline: Outline) -> None:
        if outline.layers:
            raise ValueError(
                f"`FedAvg` averages dense parameters, and layer {min(outline.layers)!r} is low "
                "rank: the mean of factors is not the factors of the mean. Use `FeDLRT`, or "
                "`rankwise.densify_(model)` to train it whole"
            )
