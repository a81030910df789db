"""A model of normalised inputs as one of pixel values."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankwise.nn.base import check_module


class Normalised(nn.Module):
    """`model((x - mean) / deviation)` for images `x` (rows, channels, ...) of values in [0, 1].

    So that the `eps` and `bounds` of an attack are those of pixels, as in the literature.

    Args:
        model: takes normalised images.
        mean: a number, or one for each channel.
        deviation: a number, or one for each channel, > 0.

    Raises:
        ValueError: for numbers that are not finite, a deviation <= 0, or counts that differ.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, model: nn.Module, mean: float | Sequence[float], deviation: float | Sequence[float]
    ) -> None:
        super().__init__()
        check_module(model)
        means, deviations = _numbers("mean", mean), _numbers("deviation", deviation)
        if min(deviations) <= 0.0:
            raise ValueError(f"`deviation` must be > 0, got {deviation!r}")
        if len(means) != len(deviations) and 1 not in (len(means), len(deviations)):
            raise ValueError(
                f"`mean` has {len(means)} numbers and `deviation` {len(deviations)}; give one for "
                "each channel in both, or a single one"
            )
        self.model = model
        self.register_buffer("mean", torch.tensor(means))
        self.register_buffer("deviation", torch.tensor(deviations))

    def forward(self, x: Tensor) -> Tensor:
        channels = max(len(self.mean), len(self.deviation))
        if x.ndim < 2 or channels not in (1, x.shape[1]):
            raise ValueError(
                f"`x` must be (rows, {channels}, ...), as `mean` and `deviation` are for that many "
                f"channels; got {tuple(x.shape)}"
            )
        shape = (-1, *[1] * (x.ndim - 2))
        mean, deviation = (t.to(x.dtype).view(shape) for t in (self.mean, self.deviation))
        return self.model((x - mean) / deviation)


def _numbers(name: str, value: float | Sequence[float]) -> list[float]:
    try:
        numbers = [float(value)] if isinstance(value, (int, float)) else list(map(float, value))
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be a number or one for each channel, got {value!r}"
        ) from None
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"`{name}` must be finite numbers, got {value!r}")
    return numbers
