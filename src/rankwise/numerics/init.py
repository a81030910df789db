"""Where factors start: adapters, training from scratch, a trained weight."""

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import orthonormalise
from rankwise.numerics.svd import svd


def _orthonormal(
    rows: int, rank: int, *, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    X = torch.randn(rows, rank, generator=generator, dtype=like.dtype, device="cpu")
    return orthonormalise(X).to(like.device)


def _check_rank(rank: int, m: int, n: int) -> None:
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"`rank` must be between 1 and min(m, n) = {min(m, n)}, got {rank}")


def zero_core(
    m: int, n: int, rank: int, *, generator: torch.Generator | None = None, like: Tensor
) -> Factors:
    """Random orthonormal `U`, `V` and `S = 0`, for an adapter: the function does not change.

    `dK = G V` and `dL = G^T U` do not vanish at `S = 0`, so there is no dead start.
    """
    _check_rank(rank, m, n)
    U = _orthonormal(m, rank, generator=generator, like=like)
    V = _orthonormal(n, rank, generator=generator, like=like)
    return Factors(U, like.new_zeros(rank, rank), V)


def variance_preserving(
    m: int,
    n: int,
    rank: int,
    *,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    like: Tensor,
) -> Factors:
    """Random factors whose product has the variance of a dense start, for training from scratch.

    `S = s I` with `E ||W x||^2 / m = gain^2 E ||x||^2 / n` for isotropic `x`: since
    `||W||_F^2 = s^2 r`, this asks for `s = gain * sqrt(m / r)`.
    """
    _check_rank(rank, m, n)
    U = _orthonormal(m, rank, generator=generator, like=like)
    V = _orthonormal(n, rank, generator=generator, like=like)
    S = torch.eye(rank, dtype=like.dtype, device=like.device) * (gain * (m / rank) ** 0.5)
    return Factors(U, S, V)


def truncated_svd(W: Tensor, rank: int) -> Factors:
    """The best approximation of `W` (m, n) of that rank (Eckart and Young, 1936); `S` diagonal."""
    _check_rank(rank, *W.shape)
    P, sigma, Qh = svd(W)
    return Factors(P[:, :rank].contiguous(), torch.diag(sigma[:rank]), Qh[:rank].mT.contiguous())
