"""Augmented BUG: new bases from K and L, then the core moves in them, with a gradient of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages, unchanged
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import decompose, embed_factors, frame_of


@dataclass(frozen=True)
class AugmentedBUG(Integrator):
    """`W_hat = W - h U_hat U_hat^T G V_hat V_hat^T` with `U_hat = [U, G V]`, `V_hat = [V, G^T U]`.

    Ceruti, Kusch and Lubich (BIT 2022); DLRT (Schotthoefer et al., NeurIPS 2022) with one step of
    the core. `W` is the same in the new bases, so both gradients are those of one backward pass.
    Against the parallel step it also moves the block `U~^T G V~`: what is new on both sides.
    """

    same_matrix: ClassVar[bool] = True

    def stages(self, f: Factors, reshape: Callable[[Tensor], Tensor] = unchanged) -> Stages:
        D = yield f
        frame = frame_of(f, D)
        point = embed_factors(f, frame)
        D_hat = yield point
        return decompose(frame, point.S - reshape(D_hat.C))
