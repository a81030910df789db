"""Averages of adapters."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.adapters.adapter import Adapter
from rankwise.adapters.sums import linear_combination


def mean(adapters: Sequence[Adapter], *, weights: Sequence[float] | None = None) -> Adapter:
    """`sum_i w_i a_i` with weights of sum one, of the updates and of the dense tensors too.

    Running statistics are averaged like parameters; of a counter the largest is kept. For the
    exponential mean of a training, round after each:
    `ema = mean([ema, take(model)], weights=[0.99, 0.01]).rounded(rtol=1e-8)`; the errors add up, to
    `rtol / (1 - 0.99)` of the norm at most.

    Args:
        adapters: at least one, all with the same dense tensors.
        weights: one of each, with sum one. None: all alike.

    Raises:
        ValueError: for weights that do not fit, and for adapters of different models.
    """
    if isinstance(adapters, Adapter):
        raise TypeError("`adapters` must be a list of adapters, got one; `[a, b]` are two")
    given = list(adapters)
    if not given or not all(isinstance(a, Adapter) for a in given):
        raise ValueError("`adapters` must be a list of one or more adapters")
    shares = [1.0 / len(given)] * len(given) if weights is None else [float(w) for w in weights]
    if len(shares) != len(given):
        raise ValueError(f"`weights` must be {len(given)} numbers, one of each, got {len(shares)}")
    if not math.isclose(sum(shares), 1.0, rel_tol=1e-9):
        raise ValueError(f"`weights` must have the sum 1, got {sum(shares):g}")

    def combine(name: str, values: list[Tensor]) -> Tensor:
        if any(value.shape != values[0].shape for value in values):
            raise ValueError(f"{name!r} has other shapes in other adapters")
        if not values[0].is_floating_point():
            return torch.stack(values).amax(0)
        total = sum(w * value.double() for w, value in zip(shares, values, strict=True))
        assert isinstance(total, Tensor)
        return total.to(values[0].dtype)

    terms = zip(shares, (a.stored for a in given), strict=True)
    return Adapter(linear_combination(list(terms), combine))
