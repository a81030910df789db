"""Augmented BUG: new bases from K and L, then the core moves in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import decompose, embed_factors, frame_of, whole


@dataclass(frozen=True)
class AugmentedBUG(Integrator):
    """`W_hat = W - h U_hat U_hat^T G V_hat V_hat^T` with `U_hat = [U, G V]`, `V_hat = [V, G^T U]`.

    Ceruti, Kusch and Lubich (BIT 2022); DLRT (Schotthoefer et al., NeurIPS 2022) with one step of
    the core. `W` is the same in the new bases, so both gradients are those of one backward pass.
    Against the parallel step it also moves the block `U~^T G V~`: what is new on both sides.
    """

    same_matrix: ClassVar[bool] = True
    points: ClassVar[int] = 2

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        frame = frame_of(f, D)
        point = embed_factors(f, frame)
        D_hat = yield point
        return decompose(frame, point.S - take(D_hat.C))
