"""Projector splitting (KSL): the classical integrator, as a reference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Frame, decompose, whole


@dataclass(frozen=True)
class ProjectorSplitting(Integrator):
    """K forward, S backward, L forward, each from where the last one ended, with three gradients.

    Lubich and Oseledets, BIT 2014. The step of S walks uphill: for reference, not for training.
    """

    same_matrix: ClassVar[bool] = False
    points: ClassVar[int] = 3

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        U1, S1 = torch.linalg.qr(f.U @ f.S - D.K)
        D = yield Factors(U1, S1, f.V)
        S0 = S1 + take(D.C)
        D = yield Factors(U1, S0, f.V)
        V1, R = torch.linalg.qr(f.V @ S0.mT - D.L)
        return decompose(Frame(U1, V1), R.mT)
