"""The mean of the answers of clients."""

from collections.abc import Mapping

import torch

from rankwise.federated.message import Arrays


def weighted_mean(answers: Mapping[str, Arrays], samples: Mapping[str, int]) -> Arrays:
    """`sum_c n_c a_c / sum_c n_c` by name, the n_c from `samples`; at least one client.

    Summed in float64 in the order of the names of clients, so that the order in which answers came
    changes no bit.
    """
    clients = sorted(answers)
    total = sum(samples[c] for c in clients)
    mean: Arrays = {}
    for name, first in answers[clients[0]].items():
        added = torch.zeros(first.shape, dtype=torch.float64)
        for client in clients:
            added.add_(answers[client][name].detach(), alpha=samples[client] / total)
        mean[name] = added.to(first.dtype)
    return mean
