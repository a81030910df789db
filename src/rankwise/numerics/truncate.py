"""Choosing ranks from singular values: one layer by a tolerance, all layers by a budget."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_for_tolerance(sigma: Tensor, *, rtol: float, min_rank: int = 1) -> int:
    """Smallest rank whose discarded tail satisfies `||sigma[rank:]|| <= rtol * ||sigma||`.

    Args:
        sigma: descending singular values, (r,).
        rtol: relative to the Frobenius norm, in [0, 1); "tau" in the papers of this field.
        min_rank: never fewer than this (nor more than r).
    """
    if not 0.0 <= rtol < 1.0:
        raise ValueError(f"`rtol` must be in [0, 1), got {rtol}")
    tail = _scaled(sigma).flip(0).square().cumsum(0).flip(0).sqrt()
    keep = int((tail > rtol * tail[:1]).sum())
    return min(max(keep, min_rank), sigma.shape[0])


def rank_above(sigma: Tensor, *, rtol: float, min_rank: int = 1) -> int:
    """Number of singular values with `sigma_i > rtol * ||sigma||`; at most `1 / rtol^2`.

    A tail grows with every direction in it, however small each of them is, so that its tolerance
    keeps more of a wide layer than of a narrow one. What a single direction carries does not depend
    on how many others there are.

    Args:
        sigma: descending singular values, (r,).
        rtol: relative to the Frobenius norm, in [0, 1).
        min_rank: never fewer than this (nor more than r).
    """
    if not 0.0 <= rtol < 1.0:
        raise ValueError(f"`rtol` must be in [0, 1), got {rtol}")
    scaled = _scaled(sigma)
    keep = int((scaled > rtol * torch.linalg.vector_norm(scaled)).sum())
    return min(max(keep, min_rank), sigma.shape[0])


def _scaled(sigma: Tensor) -> Tensor:
    """Largest value one, so that no square under- or overflows."""
    return sigma / sigma[:1].clamp_min(torch.finfo(sigma.dtype).tiny)


def ranks_for_budget(
    scores: Sequence[Sequence[float]],
    costs: Sequence[float],
    *,
    budget: float,
    min_rank: int | Sequence[int] = 1,
) -> list[int]:
    """Ranks that keep the highest scores of all layers within `sum(rank * cost) <= budget`.

    Every layer keeps `min_rank` directions (or all, if it has fewer), even where these alone
    exceed the budget. The rest is taken greedily, best score first; a direction that no longer
    fits is passed over, and with it the later ones of its layer, so that ranks are prefixes.

    Args:
        scores: per layer, the worth of each direction, descending.
        costs: per layer, what one direction costs (1 to count directions, m + n for parameters).
        budget: in the unit of `costs`.
        min_rank: of every layer, or per layer.
    """
    least = [min_rank] * len(scores) if isinstance(min_rank, int) else min_rank
    ranks = [min(r, len(s)) for r, s in zip(least, scores, strict=True)]
    left = budget - sum(r * c for r, c in zip(ranks, costs, strict=True))
    candidates = sorted(
        ((-score, layer, k) for layer, s in enumerate(scores) for k, score in enumerate(s)),
    )
    for _, layer, k in candidates:
        if k == ranks[layer] and costs[layer] <= left:
            ranks[layer] += 1
            left -= costs[layer]
    return ranks
