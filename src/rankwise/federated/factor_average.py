"""The mean of low-rank factors, one by one: a baseline that is wrong."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rankwise.federated.local import Local
from rankwise.federated.message import Arrays
from rankwise.federated.outline import Outline
from rankwise.federated.phase import (
    Method,
    Phase,
    Rate,
    check_descent,
    check_low_rank,
    factor_names,
    rate_at,
)
from rankwise.io.stored import join
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Frame, cut, decompose


@dataclass(frozen=True)
class TrainFactors(Phase):
    """Clients train `B` and `A` of `W = B A`; the server averages each."""

    lr: Rate
    steps: int
    name: ClassVar[str] = "train"

    def reply_like(self, outline: Outline, known: Arrays) -> Arrays:
        like = outline.dense | outline.statistics
        for layer, W in outline.layers.items():
            r = known[join(layer, "S")].shape[0]
            like |= {join(layer, "B"): W.like(W.m, r), join(layer, "A"): W.like(r, W.n)}
        return like

    def answer(self, local: Local, outline: Outline, known: Arrays, own: Arrays) -> Arrays:
        # With `U = B`, `S = I` and `V = A^T` the slots of a layer are the gradients of B and A.
        factors: Arrays = {}
        for layer in outline.layers:
            U, S, V = (known[join(layer, name)] for name in "USV")
            factors |= {join(layer, "U"): U @ S, join(layer, "S"): torch.eye(len(S)).to(S)}
            factors |= {join(layer, "V"): V}
        local.put(known | factors)
        names = factor_names(outline, "UV") + list(outline.dense)
        local.descend(names, self.steps, rate_at(self.lr, local.round), {})
        answer = local.values([*outline.dense, *outline.statistics])
        for layer in outline.layers:
            trained = local.values([join(layer, "U"), join(layer, "V")])
            answer[join(layer, "B")] = trained[join(layer, "U")]
            answer[join(layer, "A")] = trained[join(layer, "V")].mT.contiguous()
        return answer

    def combine(self, outline: Outline, known: Arrays, mean: Arrays, round: int) -> Arrays:
        state = {n: mean[n] for n in (*outline.dense, *outline.statistics)}
        for layer in outline.layers:
            f = factored(mean[join(layer, "B")], mean[join(layer, "A")])
            state |= {join(layer, name): t for name, t in f._asdict().items()}
        return state


@dataclass(frozen=True)
class FactorAverage(Method):
    """LoRA's `A` and `B` trained by clients and averaged one by one: a baseline, and wrong.

    The mean of products is not the product of means. Two clients with `B_1 A_1 = [[1, 0], [0, 0]]`
    by `B_1 = [1, 0]^T`, `A_1 = [1, 0]` and `B_2 A_2 = [[0, 0], [0, 1]]` by `B_2 = [0, 1]^T`,
    `A_2 = [0, 1]` have the mean `[[1/2, 0], [0, 1/2]]`; the product of the means is
    `[[1/4, 1/4], [1/4, 1/4]]`. The rank stays. `FeDLRT` averages in bases that clients share.

    Args:
        lr: of plain gradient descent, > 0, or a function of the number of the round.
        steps: local ones in a round, >= 1.
    """

    lr: Rate = 0.01
    steps: int = 10

    def __post_init__(self) -> None:
        check_descent("FactorAverage", self.lr, self.steps)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (TrainFactors(self.lr, self.steps),)

    def check(self, outline: Outline) -> None:
        check_low_rank("FactorAverage", outline)


def factored(B: torch.Tensor, A: torch.Tensor) -> Factors:
    """`B A` for `B` (m, r) and `A` (r, n) with orthonormal bases, at rank r."""
    U, left = torch.linalg.qr(B)
    V, right = torch.linalg.qr(A.mT)
    f = cut(decompose(Frame(U, V), left @ right.mT), B.shape[1])
    return Factors(*(t.contiguous() for t in f))
