"""Low-rank approximation where some directions matter more: `min ||L (W - W') R^T||_F`.

`R^T R = sum x x^T` over the inputs x of a layer makes it the error of its outputs (Chen et al.,
2021; SVD-LLM, 2024); `L^T L = sum d d^T` over the gradients d of its outputs makes it, to second
order, the increase of the loss, with the Fisher information taken as a Kronecker product (K-FAC,
Martens and Grosse, 2015).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.svd import svd


def stack_triangle(R: Tensor | None, rows: Tensor) -> Tensor:
    """The triangle (n, n) with `R'^T R' = R^T R + rows^T rows`, for `rows` (k, n).

    By QR of `[R; rows]` and not by Cholesky of a Gram matrix, which squares the condition number
    and fails on deficient data. Before the first rows, `R` is None.
    """
    n = rows.shape[1]
    before = rows.new_zeros(n, n) if R is None else R
    return torch.linalg.qr(torch.cat([before, rows]), mode="r").R


def damped(R: Tensor, size: Tensor) -> Tensor:
    """The triangle of `R^T R + size I`, invertible for `size` > 0."""
    n = R.shape[1]
    root = size.sqrt().clamp_min(torch.finfo(R.dtype).tiny ** 0.5)
    return stack_triangle(R, root * torch.eye(n, dtype=R.dtype, device=R.device))


class WeightedSVD(NamedTuple):
    """`L W R^T = P diag(sigma) Q^T`; the best approximation of rank r has the error `sigma[r:]`."""

    W: Tensor
    """(m, n), m <= n; of a tall matrix its transpose, with the parts of L and R changed over."""
    L: Tensor
    """Invertible upper triangle (m, m)."""
    P: Tensor
    sigma: Tensor
    """(m,)"""
    tall: bool

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.W.shape
        return (n, m) if self.tall else (m, n)

    def stands_for(self, W: Tensor) -> bool:
        """Whether this is the decomposition of `W`."""
        return W.shape == self.shape and torch.equal(W.mT if self.tall else W, self.W)

    def cut(self, rank: int) -> Factors:
        """`W' = L^-1 P_r P_r^T L W`, as factors with orthonormal bases; no inverse of `R`."""
        P = self.P[:, :rank]
        left = torch.linalg.solve_triangular(self.L, P, upper=True)
        right = (self.L @ self.W).mT @ P
        U, B = torch.linalg.qr(left)
        V, A = torch.linalg.qr(right)
        U, V = U.contiguous(), V.contiguous()
        S = B @ A.mT
        return Factors(V, S.mT.contiguous(), U) if self.tall else Factors(U, S, V)


def weighted_svd(W: Tensor, L: Tensor, Z: Tensor, *, tall: bool = False) -> WeightedSVD:
    """For `W` (m, n), m <= n, an invertible `L` (m, m) and a `Z` (k, m), `Z^T Z = W R^T R W^T`.

    The right weight enters by its product with `W` alone, so that everything here is as small as
    the shorter side. Of a tall matrix, give `W^T`, the triangle of its inputs as `L`, and `tall`.
    """
    P, sigma, _ = svd(L @ Z.mT)
    return WeightedSVD(W, L, P, sigma, tall)
