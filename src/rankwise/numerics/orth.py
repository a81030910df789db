"""Orthonormal bases by Householder QR, the one method that stays orthonormal on deficient input.

Matrices may be stacked along leading dimensions.
"""

import torch
from torch import Tensor


def orthonormalise(X: Tensor) -> Tensor:
    """Orthonormal basis (..., m, min(m, k)) whose leading columns span those of `X` (..., m, k).

    `diag(R) >= 0`, so the result does not depend on LAPACK's signs, and an `X` that is already
    orthonormal comes back as it is. Columns that add nothing are completed arbitrarily.
    """
    # LAPACK's Q is column-major.
    return qr(X)[0].contiguous()


def augment(U: Tensor, X: Tensor) -> Tensor:
    """Orthonormal basis of `span[U, X]` whose first block is `U`, `U` (..., m, r), `X` (..., m, k).

    Returns (..., m, min(m, r + k)). The first block is `U` up to rounding: an orthonormality lost
    by `U` to rounding is restored here, so that it cannot build up over the steps of a long run.
    Columns of `X` are scaled to largest entry one first, so that no square under- or overflows
    for a gradient of size 1e-30 or 1e30; the span does not change.
    """
    return augment_with(U, X)[0]


def augment_with(U: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """`U_hat = augment(U, X)`, and `U_hat^T X` (..., min(m, r + k), k), which comes with the QR."""
    sizes = X.abs().amax(-2, keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)
    # As rows, where both are: LAPACK's columns are those.
    Q, R = qr(torch.cat([U.mT, (X / sizes).mT], dim=-2).mT)
    return Q, R[..., U.shape[-1] :] * sizes


def times(Q: Tensor, A: Tensor) -> Tensor:
    """`Q A` for tall `Q` (..., m, r) and small `A` (..., r, k), column by column.

    Twice as fast as `Q @ A` at low rank where `Q` is column-major, as LAPACK's bases are; the
    result is so too.
    """
    return (A.mT @ Q.mT).mT


def qr(X: Tensor) -> tuple[Tensor, Tensor]:
    """`X = Q R` (..., m, k), `Q` with min(m, k) orthonormal columns and `diag(R) >= 0`."""
    Q, R = torch.linalg.qr(X)
    sign = torch.copysign(Q.new_ones(Q.shape[-1]), R.diagonal(dim1=-2, dim2=-1))
    return Q * sign[..., None, :], R * sign[..., None]
