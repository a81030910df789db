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
    # tail[j] = ||sigma[j:]||; scaled by the largest value, so that no square under- or overflows.
    top = sigma[:1].abs().clamp_min(torch.finfo(sigma.dtype).tiny)
    tail = (sigma / top).flip(0).square().cumsum(0).flip(0).sqrt()
    keep = int((tail > rtol * tail[:1]).sum())
    return min(max(keep, min_rank), sigma.shape[0])


def ranks_for_budget(
    scores: Sequence[Sequence[float]], costs: Sequence[int], *, budget: float, min_rank: int = 1
) -> list[int]:
    """Ranks that keep the highest scores of all layers within `sum(rank * cost) <= budget`.

    Every layer keeps `min_rank` directions (or all, if it has fewer), even where these alone
    exceed the budget. The rest is taken greedily, best score first; a direction that no longer
    fits is passed over, and with it the later ones of its layer, so that ranks are prefixes.

    Args:
        scores: per layer, the worth of each direction, descending.
        costs: per layer, what one direction costs (1 to count directions, m + n for parameters).
        budget: in the unit of `costs`.
    """
    ranks = [min(min_rank, len(s)) for s in scores]
    left = budget - sum(r * c for r, c in zip(ranks, costs, strict=True))
    candidates = sorted(
        ((-score, layer, k) for layer, s in enumerate(scores) for k, score in enumerate(s)),
    )
    for _, layer, k in candidates:
        if k == ranks[layer] and costs[layer] <= left:
            ranks[layer] += 1
            left -= costs[layer]
    return ranks
