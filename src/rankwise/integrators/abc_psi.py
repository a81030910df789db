"""abc-PSI: projector splitting whose backward step is replaced by a projection that is exact."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import augment
from rankwise.numerics.retract import Frame, decompose, embed_factors, whole


@dataclass(frozen=True)
class AugmentedPSI(Integrator):
    """`W_hat = W - h U_hat U_hat^T G` with `U_hat = [U, G V]`: first K, then L, no step uphill.

    The augmented backward-corrected projector splitting integrator of Kusch, Schotthoefer and
    Walter (SIMODS 2026). `L_hat = W^T U_hat - h G^T U_hat` is (n, 2r); it is written in the bases
    `V_hat = [V, G^T U_hat]`, which hold it exactly, so that the step is linear in `h`.
    """

    same_matrix: ClassVar[bool] = True
    points: ClassVar[int] = 2

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        U_hat = augment(f.U, D.K)
        # The point only has to have U_hat on the left; on the right L serves as well as any.
        D_hat = yield embed_factors(f, Frame(U_hat, augment(f.V, D.L)))
        frame = Frame(U_hat, augment(f.V, D_hat.L))
        core = take(D_hat.L.mT @ frame.V_hat)
        return decompose(frame, embed_factors(f, frame).S - core)
