"""Labelled samples dealt out to clients that see different classes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Dirichlet

LEAST_ALPHA = 0.01
"""Below, a Dirichlet draw in double precision is no longer one."""


def dirichlet_split(labels: Tensor, clients: int, *, alpha: float, seed: int) -> list[Tensor]:
    """Rows of each client: of every class, shares that are drawn from `Dirichlet(alpha)`.

    The smaller `alpha`, the fewer classes a client sees; as it grows all see the same mixture. A
    client left with nothing gets one row of the client that has most.

    Args:
        labels: (rows,), integers.
        clients: how many, at least 1 and at most as many as rows.
        alpha: of the symmetric distribution over clients, at least 0.01.
        seed: of the shares, and of which rows they are.

    Returns:
        Sorted rows, one tensor a client; every row is in exactly one of them, none is empty.

    References:
        Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated
        visual classification", 2019.
    """
    if not 1 <= clients <= len(labels):
        raise ValueError(
            f"`clients` must be from 1 to {len(labels)}, the number of samples, got {clients}"
        )
    if not LEAST_ALPHA <= alpha < float("inf"):
        raise ValueError(f"`alpha` must be finite and at least {LEAST_ALPHA}, got {alpha}")
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for label in labels.unique():
            rows = torch.nonzero(labels == label).flatten()
            rows = rows[torch.randperm(len(rows))]
            shares = Dirichlet(torch.full((clients,), alpha, dtype=torch.float64)).sample()
            cuts = (shares.cumsum(0)[:-1] * len(rows)).round().long()
            for part, dealt in zip(parts, rows.tensor_split(cuts), strict=True):
                part.append(dealt)
    return _none_empty([torch.cat(part) for part in parts])


def _none_empty(parts: Sequence[Tensor]) -> list[Tensor]:
    filled = list(parts)
    for i, part in enumerate(parts):
        if len(part) == 0:
            most = max(range(len(filled)), key=lambda j: len(filled[j]))
            filled[i], filled[most] = filled[most][-1:], filled[most][:-1]
    return [part.sort().values for part in filled]
