"""Orthonormal bases by Householder QR, the one method that stays orthonormal on deficient input."""

import torch
from torch import Tensor


def orthonormalise(X: Tensor) -> Tensor:
    """Orthonormal basis (m, min(m, k)) whose leading columns span those of `X` (m, k).

    `diag(R) >= 0`, so the result does not depend on LAPACK's signs, and an `X` that is already
    orthonormal comes back as it is. Columns that add nothing are completed arbitrarily.
    """
    Q, R = torch.linalg.qr(X)
    sign = torch.copysign(Q.new_ones(Q.shape[1]), R.diagonal())
    # LAPACK's Q is column-major.
    return torch.mul(Q, sign, out=torch.empty_like(Q, memory_format=torch.contiguous_format))


def augment(U: Tensor, X: Tensor) -> Tensor:
    """Orthonormal basis of `span[U, X]` whose first block is `U`, for `U` (m, r) and `X` (m, k).

    Returns (m, min(m, r + k)). The first block is `U` up to rounding: an orthonormality lost by
    `U` to rounding is restored here, so that it cannot build up over the steps of a long run.
    Columns of `X` are scaled to largest entry one first, so that no square under- or overflows
    for a gradient of size 1e-30 or 1e30; the span does not change.
    """
    largest = torch.linalg.vector_norm(X, float("inf"), dim=0)
    scaled = X / largest.clamp_min(torch.finfo(X.dtype).tiny)
    return orthonormalise(torch.cat([U, scaled], dim=1))
