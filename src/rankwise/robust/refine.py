"""Multipliers of the activations that make the last ellipsoid small."""

from collections.abc import Callable

import torch
from torch import Tensor

from rankwise.robust.reachable import TINY, Ellipsoid, Reachable
from rankwise.robust.walk import Network, Walk
from rankwise.surgery.watch import evaluating

RATE = 0.1


def refined(network: Network, rounds: int, size: Callable[[Tensor], Tensor]) -> Reachable:
    """The reachable of the outputs after a descent of `size` over all multipliers at once.

    The multipliers of each layer are free, so that every step of the descent is a valid bound; the
    best of them is kept, the closed form among them.

    Args:
        network: met `rounds + 1` times, convolutions once.
        rounds: steps of Adam on the logarithms of the multipliers, >= 0.
        size: of the last ellipsoid, a positive number of its `root`, to be made small.

    Raises:
        ValueError: for negative `rounds`, or a layer for which no bound is known.
    """
    if rounds < 0:
        raise ValueError(f"`rounds` must be at least 0, got {rounds}")
    # A parametrised weight, of `spectral_norm` e.g., changes where it is read in training.
    with evaluating(network.model):
        return _descended(network, rounds, size)


def _descended(network: Network, rounds: int, size: Callable[[Tensor], Tensor]) -> Reachable:
    first = Walk(network)
    best = first.whole()
    if not first.activations or not isinstance(best, Ellipsoid) or best.radius <= TINY:
        return best
    least = float(size(best.root()))
    with torch.inference_mode(False), torch.enable_grad():
        logits = [torch.zeros(n, dtype=torch.float64).requires_grad_() for n in first.activations]
        descent = torch.optim.Adam(logits, lr=RATE)
        for step in range(rounds + 1):
            reachable = Walk(network, logits=logits).whole()
            assert isinstance(reachable, Ellipsoid)
            value = size(reachable.root())
            if value.item() < least:
                least, best = value.item(), Ellipsoid(*(t.detach() for t in reachable))
            if step < rounds:
                descent.zero_grad()
                value.log().backward()
                # Where a layer is zero, nothing depends on what is before it: no slope to follow.
                if not all(bool(t.grad.isfinite().all()) for t in logits if t.grad is not None):
                    return best
                descent.step()
    return best
