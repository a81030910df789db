"""The weights of layers for their norms: in float64 on the CPU, in factors where they have some."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.nn import LowRankConv1d, LowRankConv2d, LowRankLinear, TuckerConv2d
from rankwise.nn.base import is_transposed
from rankwise.nn.geometry import Geometry
from rankwise.numerics.tucker import times_first, times_second
from rankwise.robust.kernel import Kernel

KernelOf = Callable[[Any, Tensor | None], Kernel]


def exact(value: Tensor) -> Tensor:
    """In float64 on the CPU; ValueError where an entry is NaN or infinite."""
    t = value.detach().to("cpu", torch.float64)
    if not bool(t.isfinite().all()):
        raise ValueError("has NaN or infinite weights, which no bound holds for")
    return t


def linear_parts(layer: Any) -> tuple[Tensor, ...]:
    """Matrices whose product is the weight of a linear layer; thin ones if it is low rank."""
    if not isinstance(layer, LowRankLinear):
        return (exact(layer.weight),)
    U, S, V = map(exact, layer.factors())
    if layer.base is None:
        return U, layer.scale * S, V.mT
    if not (type(layer.base) is nn.Linear or is_transposed(layer.base)):
        raise ValueError(
            f"has a base of type {type(layer.base).__name__}, whose weight is not known exactly; "
            "an adapter needs a base of type nn.Linear"
        )
    weight: Any = layer.base.weight
    base = exact(weight.mT if is_transposed(layer.base) else weight)
    return (base if layer.merged else base + layer.scale * U @ S @ V.mT,)


def normalisation_gain(norm: Any) -> Tensor:
    """What a batch norm multiplies each channel by in evaluation mode, (channels,) in float64."""
    if norm.running_var is None:
        raise ValueError(
            "normalises by the batch that it gets, also in evaluation: no bound holds for one "
            "sample; use track_running_stats=True"
        )
    gain = (exact(norm.running_var) + norm.eps).rsqrt()
    return exact(gain if norm.weight is None else gain * exact(norm.weight))


def plain_kernel(layer: Any, gain: Tensor | None) -> Kernel:
    """Of `nn.Conv1d` and `nn.Conv2d`."""
    if layer.padding_mode != "zeros":
        raise ValueError(
            f"pads with padding_mode={layer.padding_mode!r}; only 'zeros' has a bound here"
        )
    weight = _gained(exact(layer.weight), gain)
    if weight.ndim == 3:
        weight = weight.unsqueeze(2)
    moves = (_pair(layer.stride), (0, 0), _pair(layer.dilation))
    geometry = Geometry((weight.shape[2], weight.shape[3]), *moves)
    return Kernel(weight.unflatten(0, (layer.groups, -1)), geometry)


def matricised_kernel(layer: LowRankConv2d, gain: Tensor | None) -> Kernel:
    """`r` kernels in the place of `out`: `g U = Q T` leaves `T S V^T`."""
    if layer.base is not None:
        return _sum_kernel(layer, gain)
    U, S, V = map(exact, layer.factors())
    rows = layer.scale * _triangle(_gained(U, gain)) @ S @ V.mT
    size = layer.geometry.kernel_size
    return Kernel(rows.reshape(1, len(rows), layer.in_channels, *size), layer.geometry)


def _sum_kernel(layer: LowRankConv2d, gain: Tensor | None) -> Kernel:
    """Of an adapter: that of its base, with the product added unless it is merged."""
    assert layer.base is not None
    kernel = plain_kernel(layer.base, gain)
    if layer.merged:
        return kernel
    U, S, V = map(exact, layer.factors())
    delta = layer.scale * _gained(U, gain) @ S @ V.mT
    return kernel._replace(weight=kernel.weight + delta.reshape(kernel.weight.shape))


def tucker_kernel(layer: TuckerConv2d, gain: Tensor | None) -> Kernel:
    """The core, with the triangles of both bases."""
    U, core, V = map(exact, layer.factors())
    left, right = _triangle(_gained(U, gain)), _triangle(V)
    core = layer.scale * times_second(times_first(core, left), right)
    return Kernel(core[None], layer.geometry)


KERNELS: dict[type[nn.Module], KernelOf] = {
    nn.Conv1d: plain_kernel,
    nn.Conv2d: plain_kernel,
    LowRankConv1d: matricised_kernel,
    LowRankConv2d: matricised_kernel,
    TuckerConv2d: tucker_kernel,
}
"""The kernel of a convolution, its output channels multiplied by the gain of a batch norm."""


def _gained(rows: Tensor, gain: Tensor | None) -> Tensor:
    return rows if gain is None else rows * gain.reshape(-1, *[1] * (rows.ndim - 1))


def _triangle(X: Tensor) -> Tensor:
    """`T` of `X = Q T`: bases are orthonormal up to the rounding of training, a gain undoes it."""
    return torch.linalg.qr(X, mode="r")[1]


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    """(vertical, horizontal); one value is of an image of height one."""
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])
