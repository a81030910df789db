"""Parallel BUG: K, L and S move at once from the same bases, with one gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import whole


@dataclass(frozen=True)
class ParallelBUG(Integrator):
    """`W_hat = W - h P(W) G` in the bases `[U, G V]` and `[V, G^T U]`.

    Ceruti, Kusch and Lubich (SISC 2024); GeoLoRA (Schotthoefer et al., ICLR 2025, Algorithm 1).
    Also Riemannian gradient descent, with the truncated SVD as its retraction. For Tucker kernels
    the same with one basis more in each mode and the truncated HOSVD: TDLRT (Zangrando et al.,
    NeurIPS 2024) with one backward pass.
    """

    same_matrix: ClassVar[bool] = True
    needs_matrices: ClassVar[bool] = False
    points: ClassVar[int] = 1
    widening: ClassVar[int] = 2

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        return D.displaced(f, take)
