"""Reshaping the singular values of a direction."""

import torch
from torch import Tensor


def spectral_power(X: Tensor, power: float, *, rtol: float = 1e-6) -> Tensor:
    """`P diag(sigma^power) Q^T` for `X = P diag(sigma) Q^T`, scaled to the Frobenius norm of `X`.

    `power` 1 leaves `X` as it is, 0 gives a multiple of its polar factor (all singular values
    equal, as in Muon). Singular values below `rtol` times the largest become zero: they are noise
    that a small power would blow up.
    """
    P, sigma, Qh = torch.linalg.svd(X, full_matrices=False)
    relative = sigma / sigma[:1].clamp_min(torch.finfo(sigma.dtype).tiny)
    shaped = relative.pow(power).mul_(relative > rtol)
    size = torch.linalg.vector_norm(sigma) / torch.linalg.vector_norm(shaped).clamp_min(1e-30)
    return P @ (Qh * (shaped * size)[:, None])
