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


def stack_triangle(R: Tensor | None, rows: Tensor) -> Tensor:
    """The triangle (n, n) with `R'^T R' = R^T R + rows^T rows`, for `rows` (k, n).

    By QR of `[R; rows]` and not by Cholesky of a Gram matrix, which squares the condition number
    and fails on deficient data. Before the first rows, `R` is None.
    """
    n = rows.shape[1]
    before = rows.new_zeros(n, n) if R is None else R
    return torch.linalg.qr(torch.cat([before, rows]), mode="r").R


def damped(R: Tensor, damping: float) -> Tensor:
    """The triangle of `R^T R + damping * trace(R^T R) / n * I`, invertible for `damping` > 0."""
    n = R.shape[1]
    size = (damping * R.square().sum() / n).sqrt()
    size = size.clamp_min(torch.finfo(R.dtype).tiny ** 0.5)
    return torch.linalg.qr(torch.cat([R, size * torch.eye(n, dtype=R.dtype, device=R.device)])).R


class WeightedSVD(NamedTuple):
    """`L W R^T = P diag(sigma) Q^T`; the best approximation of rank r has the error `sigma[r:]`."""

    W: Tensor
    L: Tensor
    P: Tensor
    sigma: Tensor

    def cut(self, rank: int) -> Factors:
        """`W' = L^-1 P_r P_r^T L W`, as factors with orthonormal bases; no inverse of `R`."""
        P = self.P[:, :rank]
        left = torch.linalg.solve_triangular(self.L, P, upper=True)
        right = (self.L @ self.W).mT @ P
        U, B = torch.linalg.qr(left)
        V, A = torch.linalg.qr(right)
        return Factors(U.contiguous(), B @ A.mT, V.contiguous())


def weighted_svd(W: Tensor, L: Tensor, R: Tensor) -> WeightedSVD:
    """For `W` (m, n), an invertible upper triangle `L` (m, m) and any `R` (k, n)."""
    P, sigma, _ = torch.linalg.svd(L @ W @ R.mT, full_matrices=False)
    return WeightedSVD(W, L, P, sigma)
