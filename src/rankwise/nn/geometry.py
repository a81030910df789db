"""What convolutions have in common: how a kernel moves over images."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from rankwise.nn.function import check_floating

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel moves over an image, (vertical, horizontal); as in `nn.Conv2d`."""

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def moves(self) -> dict[str, Pair]:
        """All but the kernel size, by name."""
        return dict(zip(self._fields[1:], self[1:], strict=True))

    def __str__(self) -> str:
        """The kernel size and all that is not as in the plainest convolution."""
        plain = Geometry(self.kernel_size)
        return ", ".join(
            f"{name}={value}"
            for name, value in self._asdict().items()
            if name == "kernel_size" or value != getattr(plain, name)
        )


def as_geometry(
    kernel_size: int | Pair, stride: int | Pair, padding: int | Pair, dilation: int | Pair
) -> Geometry:
    """Each an int or two; TypeError for anything else, ValueError where one is too small."""
    return Geometry(
        _pair("kernel_size", kernel_size, 1),
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )


def convolve(
    function: type[Function],
    x: Tensor,
    factors: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    geometry: Geometry,
    *,
    channels: int,
) -> Tensor:
    """`function` on images (batch, channels, height, width) or on one without a batch.

    In the type of `x`, or of autocast where that is on.
    """
    if x.ndim not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(
            f"the input must be (batch, {channels}, height, width) or without the "
            f"batch, got {tuple(x.shape)}"
        )
    check_floating(x)
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    images = (x if x.ndim == 4 else x[None]).to(dtype)
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        outputs: Any = function.apply(images, *factors, bias, geometry)
    y: Tensor = outputs[0]
    return y if x.ndim == 4 else y[0]


def pointwise(A: Tensor) -> Tensor:
    """A map of channels (m, n) as the kernel of a convolution."""
    return A[:, :, None, None]


def sum_of_products(y: Tensor, a: Tensor) -> Tensor:
    """`sum over images and places of y a^T`, (channels of y, channels of a)."""
    return y.transpose(0, 1).flatten(1) @ a.transpose(0, 1).flatten(1).mT


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or {type(v) for v in pair} != {int}:
        raise TypeError(
            f"`{name}` must be an int or two of them, such as 3 or (3, 5), got {value!r}"
        )
    if min(pair) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}")
    return pair[0], pair[1]
