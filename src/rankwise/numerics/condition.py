"""The spread of singular values: how far a matrix is from a multiple of an isometry.

`kappa = sigma_1 / sigma_r` says how much more a matrix does to one direction of its column space
than to another. All maps here take descending singular values (r,) to new ones in the same order;
a matrix keeps its singular vectors.
"""

import torch
from torch import Tensor


def condition_number(sigma: Tensor) -> Tensor:
    """`sigma_1 / sigma_r` of descending `sigma` (r,), 0-dim: 1 for zeros, inf where some are."""
    largest, smallest = sigma[0], sigma[-1]
    return torch.where(largest > 0, largest / smallest, torch.ones_like(largest))


def spread(S: Tensor) -> Tensor:
    """`R(S) = ||S^T S - alpha^2 I||_F` with `alpha^2 = ||S||_F^2 / r`, for `S` (., r); 0-dim.

    `R^2 / r` is the variance of the squared singular values, and
    `kappa <= exp(R / (sqrt(2) sigma_r^2))`. Schotthoefer, Yang and Schnake (RobustDLRT, NeurIPS
    2025), equation of the regulariser and Proposition 2.
    """
    return torch.linalg.vector_norm(_excess(S))


def spread_gradient(S: Tensor) -> Tensor:
    """`2 S (S^T S - alpha^2 I) / R(S)`; zero where `R` is, for there it has no gradient."""
    excess = _excess(S)
    size = torch.linalg.vector_norm(excess)
    return torch.where(size > 0, 2 * S @ excess / size, torch.zeros_like(S))


def _excess(S: Tensor) -> Tensor:
    gram = S.mT @ S
    return gram - gram.trace() / S.shape[1] * torch.eye(S.shape[1], dtype=S.dtype, device=S.device)


def flattened(sigma: Tensor, length: Tensor | float) -> Tensor:
    """A step of that length down the gradient of `spread`: `d sigma_i = -2 sigma_i y_i / ||y||`.

    `y_i = sigma_i^2 / alpha^2 - 1`, which has no unit: nor has `length`. The step multiplies by
    exponentials, so that no singular value changes its sign, and is never so long that two change
    their order: it does not cross the point where all are alike, where the gradient has no limit.
    """
    tiny = torch.finfo(sigma.dtype).tiny
    y = (sigma / _mean_square_root(sigma).clamp_min(tiny)).square() - 1
    size = torch.linalg.vector_norm(y).clamp_min(tiny)
    # The squares (1 + y) exp(-4 t y) keep their order for t <= 1 / (4 (1 + y_1)).
    longest = 0.25 / (1 + y[0]).clamp_min(1.0)
    return sigma * torch.exp(-2 * torch.minimum(length / size, longest) * y)


def nearest_conditioned(sigma: Tensor, kappa: float) -> Tensor:
    """The nearest in Frobenius norm of those with `sigma_1 <= kappa sigma_r`; `kappa >= 1`.

    They are clipped to `[low, kappa low]`, and `low` solves
    `sum_{sigma_i < low} (low - sigma_i) = kappa sum_{sigma_i > kappa low} (sigma_i - kappa low)`,
    whose sides change their terms at the points `sigma_i` and `sigma_i / kappa` only.
    """
    # Beyond this a limit lifts nothing that rounding leaves; its square must be a number.
    kappa = min(kappa, 1.0 / torch.finfo(sigma.dtype).eps ** 2)
    at = torch.cat([sigma, sigma / kappa]).sort().values
    below = (sigma <= at[:, None]).to(sigma.dtype)
    above = (sigma > kappa * at[:, None]).to(sigma.dtype)
    count = below.sum(1) + kappa**2 * above.sum(1)
    total = below @ sigma + kappa * (above @ sigma)
    # What the equation lacks grows along `at`; the last that is not positive begins the interval.
    last = ((count * at <= total).sum() - 1).clamp_min(0)
    # An index of one number would be read by the host.
    low = (total / count.clamp_min(1.0)).index_select(0, last[None])
    return sigma.clamp(low, kappa * low)


def clipped_about_mean(sigma: Tensor, kappa: float) -> Tensor:
    """Clipped to `m -+ m (kappa - 1) / (kappa + 1)` with their mean `m`, as CondLR does.

    Savostianova, Zangrando, Ceruti and Tudisco, "Robust low-rank training via approximate
    orthonormal constraints" (NeurIPS 2023), where `kappa` is `1 + tau`.
    """
    return _clipped_about(sigma.mean(), sigma, kappa)


def clipped_about_root_mean_square(sigma: Tensor, kappa: float) -> Tensor:
    """As `clipped_about_mean`, about `||sigma|| / sqrt(r)`: the projection of RobustDLRT."""
    return _clipped_about(_mean_square_root(sigma), sigma, kappa)


def levelled(sigma: Tensor) -> Tensor:
    """All equal, with the same Frobenius norm: a multiple of an isometry."""
    return _mean_square_root(sigma).expand_as(sigma)


def _clipped_about(centre: Tensor, sigma: Tensor, kappa: float) -> Tensor:
    low = 2 * centre / (kappa + 1)
    return sigma.clamp(low, kappa * low)


def _mean_square_root(sigma: Tensor) -> Tensor:
    """`||sigma|| / sqrt(r)`; the norm of torch scales, no square of it under- or overflows."""
    return torch.linalg.vector_norm(sigma) / sigma.shape[0] ** 0.5
