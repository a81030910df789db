"""Factors of products and sums of thin matrices, exact up to rounding, and their cut by tolerance.

Everything is computed in float64. Nothing of the size of the matrix is formed: two thin QRs and the
SVD of a core.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Frame, cut, decompose
from rankwise.numerics.svd import svd
from rankwise.numerics.truncate import rank_for_tolerance


def from_product(B: Tensor, A: Tensor) -> Factors:
    """`B A` for `B` (m, k), `A` (k, n), in float64.

    `S` is diagonal and the rank is that of the product: directions below its rounding error, such
    as those of zero columns, are not in it. Zero has rank 1 and `S = 0`.
    """
    return _compact(B, torch.eye(B.shape[1], dtype=torch.float64, device=B.device), A.mT)


def weighted_sum(terms: Sequence[tuple[float, Factors]]) -> Factors:
    """`sum_i c_i W_i` of matrices of one shape, in float64; rank as in `from_product`."""
    U = torch.cat([f.U.double() for _, f in terms], dim=1)
    V = torch.cat([f.V.double() for _, f in terms], dim=1)
    return _compact(U, torch.block_diag(*(c * f.S.double() for c, f in terms)), V)


def rounded(f: Factors, *, rtol: float, max_rank: int | None) -> tuple[Factors, float]:
    """The best approximation of `f` within both limits, of its type, and `||W - W'||_F`.

    Args:
        f: the very same comes back if no direction has to go.
        rtol: the error allowed, relative to `||W||_F`, in [0, 1).
        max_rank: >= 1, which overrules the tolerance; None for no limit.
    """
    spectrum = decompose(Frame(f.U.double(), f.V.double()), f.S.double())
    rank = rank_for_tolerance(spectrum.sigma, rtol=rtol)
    rank = rank if max_rank is None else min(rank, max_rank)
    if rank == f.rank:
        return f, 0.0
    parts = (t.to(f.S.dtype).contiguous() for t in cut(spectrum, rank))
    return Factors(*parts), float(torch.linalg.vector_norm(spectrum.sigma[rank:]))


def _compact(X: Tensor, C: Tensor, Y: Tensor) -> Factors:
    """`X C Y^T` for `X` (m, k), `C` (k, l), `Y` (n, l), with orthonormal factors."""
    X, left = _unit_columns(X.double())
    Y, right = _unit_columns(Y.double())
    C = left[:, None] * C * right
    (U, R), (V, T) = torch.linalg.qr(X), torch.linalg.qr(Y)
    P, sigma, Qh = svd(R @ C @ T.mT)
    # What rounding leaves of a direction that is not there.
    size = _largest(R) * _largest(C) * _largest(T)
    noise = torch.finfo(torch.float64).eps * max(C.shape) * size
    rank = max(1, int((sigma > noise).sum()))
    core = torch.diag(torch.where(sigma > noise, sigma, 0.0)[:rank])
    return Factors((U @ P[:, :rank]).contiguous(), core, (V @ Qh[:rank].mT).contiguous())


def _unit_columns(X: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of length one, and their lengths; without this a long one would drown the others."""
    lengths = torch.linalg.vector_norm(X, dim=0)
    return X / torch.where(lengths > 0, lengths, 1.0), lengths


def _largest(X: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(X, 2)
