"""Reshaping the singular values of a direction."""

import torch
from torch import Tensor

from rankwise.numerics.svd import svd
from rankwise.numerics.tucker import (
    first_mode,
    left_singular,
    second_mode,
    times_first,
    times_second,
)


def spectral_power(X: Tensor, power: float, *, rtol: float = 1e-6) -> Tensor:
    """`P diag(sigma^power) Q^T` for `X = P diag(sigma) Q^T`, scaled to the Frobenius norm of `X`.

    `X` is a matrix, or matrices stacked in a leading dimension.

    `power` 1 leaves `X` as it is, 0 gives a multiple of its polar factor (all singular values
    equal, as in Muon). Singular values below `rtol` times the largest become zero: they are noise
    that a small power would blow up.

    For a tensor `X` (a, b, kh, kw) it is `X x1 (X_1 X_1^T)^-s x2 (X_2 X_2^T)^-s` with its modes
    `X_1`, `X_2` and `s = (1 - power) / 4`, which is the same for a matrix: Shampoo's scaling of
    tensors (Gupta, Koren and Singer, 2018), whose `s` is 1/4 for matrices.
    """
    if X.ndim == 4:
        shaped = times_first(X, _side(first_mode(X), power, rtol))
        shaped = times_second(shaped, _side(second_mode(X), power, rtol))
        size = torch.linalg.vector_norm(X) / torch.linalg.vector_norm(shaped).clamp_min(1e-30)
        return shaped * size
    P, sigma, Qh = svd(X)
    relative, kept = _relative(sigma, rtol)
    shaped = relative.pow(power).mul_(kept)
    old, new = (torch.linalg.vector_norm(s, dim=-1, keepdim=True) for s in (sigma, shaped))
    return P @ (Qh * (shaped * (old / new.clamp_min(1e-30)))[..., None])


def _side(X: Tensor, power: float, rtol: float) -> Tensor:
    """`(X X^T)^-s` up to a factor, on the singular values that are kept."""
    P, sigma = left_singular(X)
    relative, kept = _relative(sigma, rtol)
    weights = torch.where(kept, relative, 1.0).pow((power - 1) / 2).mul_(kept)
    return (P * weights) @ P.mT


def _relative(sigma: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    """Singular values over the largest, and which of them are no noise."""
    relative = sigma / sigma[..., :1].clamp_min(torch.finfo(sigma.dtype).tiny)
    return relative, relative > rtol
