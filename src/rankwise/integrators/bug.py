"""BUG of fixed rank: bases from K and L side by side, then the core in the new bases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import orthonormalise
from rankwise.numerics.retract import Frame, decompose, whole


@dataclass(frozen=True)
class BUG(Integrator):
    """Basis update and Galerkin (Ceruti and Lubich, BIT 2022); DLRT of fixed rank.

    `U1 = orth(U S - h G V)`, `V1 = orth(V S^T - h G^T U)`; then `S` moves from the projection
    `U1^T W V1`, which is another matrix than `W`, so its gradient needs a pass of its own.
    """

    same_matrix: ClassVar[bool] = False
    points: ClassVar[int] = 2

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        U1 = orthonormalise(f.U @ f.S - D.K)
        V1 = orthonormalise(f.V @ f.S.mT - D.L)
        S0 = (U1.mT @ f.U) @ f.S @ (f.V.mT @ V1)
        D = yield Factors(U1, S0, V1)
        return decompose(Frame(U1, V1), S0 - take(D.C))
