"""The rules of PyTorch's layers and rankwise's: what each makes of the set that its input reaches.

Dropout and batch norms act as in evaluation. Batch norms are multiplied into the linear map or
convolution before them, whose norm with them is less than the product of both.
"""

import math
from typing import Any

import torch
from torch import nn

from rankwise.nn import LowRankLinear
from rankwise.nn.geometry import Geometry
from rankwise.robust.kernel import occurrences
from rankwise.robust.normalised import Normalised
from rankwise.robust.reachable import Reachable, Sphere, as_ellipsoid, mapped
from rankwise.robust.walk import LAYERS, Rule, Walk
from rankwise.robust.weights import exact, linear_parts, normalisation_gain


def constant(bound: float) -> Rule:
    """The rule of a layer whose Lipschitz constant, in the l2 norm, is at most `bound`."""
    if not 0.0 <= bound < math.inf:
        raise ValueError(f"`bound` must be finite and not negative, got {bound}")
    return lambda layer, reachable, walk: Sphere(reachable.radius * bound)


def slopes_up_to(largest: float) -> Rule:
    """The rule of an elementwise activation with slopes in [0, `largest`], `largest` > 0."""
    return lambda layer, reachable, walk: walk.activate(reachable, largest)


def unchanged(layer: nn.Module, reachable: Reachable, walk: Walk) -> Reachable:
    return reachable


def linear(layer: Any, reachable: Reachable, walk: Walk) -> Reachable:
    """Of vectors an ellipsoid; where one matrix meets many places at once, a ball."""
    parts = linear_parts(layer)
    if _on_vectors(layer, walk):
        return mapped(as_ellipsoid(reachable, parts[-1].shape[1]), parts)
    unit = mapped(as_ellipsoid(Sphere(1.0), parts[-1].shape[1]), parts)
    return Sphere(reachable.radius * unit.radius)


def normalisation(layer: Any, reachable: Reachable, walk: Walk) -> Reachable:
    gain = normalisation_gain(layer)
    if _on_vectors(layer, walk):
        return as_ellipsoid(reachable, len(gain)).scaled(gain)
    return Sphere(reachable.radius * float(gain.abs().max()))


def scaling(layer: Normalised, reachable: Reachable, walk: Walk) -> Reachable:
    least = float(layer.deviation.min())
    return walk.through([layer.model], Sphere(reachable.radius / least))


def leaky(layer: nn.LeakyReLU, reachable: Reachable, walk: Walk) -> Reachable:
    return _bent(layer.negative_slope, layer.negative_slope, reachable, walk)


def parametric(layer: nn.PReLU, reachable: Reachable, walk: Walk) -> Reachable:
    slopes = exact(layer.weight)
    return _bent(float(slopes.min()), float(slopes.max()), reachable, walk)


def exponential(layer: nn.ELU, reachable: Reachable, walk: Walk) -> Reachable:
    return _bent(min(layer.alpha, 0.0), layer.alpha, reachable, walk)


def softplus(layer: nn.Softplus, reachable: Reachable, walk: Walk) -> Reachable:
    """From `threshold` on PyTorch takes the identity instead, with a jump of `exp(-threshold)`."""
    if layer.threshold < 20.0:
        raise ValueError(
            f"jumps by {math.exp(-layer.threshold):.1g} at threshold={layer.threshold}; a bound is "
            "known for a threshold of 20, the default, or more"
        )
    return walk.activate(reachable, 1.0)


def max_pool(layer: Any, reachable: Reachable, walk: Walk) -> Reachable:
    """`|max a - max b| <= ||a - b||` in each window, and a pixel is in so many windows."""
    geometry = _pooling(layer, walk, layer.dilation)
    return Sphere(reachable.radius * math.sqrt(math.prod(occurrences(geometry))))


def average_pool(layer: Any, reachable: Reachable, walk: Walk) -> Reachable:
    """A convolution by patches, whose kernel has the norm `1 / sqrt(kh kw)`."""
    geometry = _pooling(layer, walk, 1)
    padded = any(geometry.padding) and not layer.count_include_pad
    if layer.ceil_mode or padded or getattr(layer, "divisor_override", None) is not None:
        raise ValueError(
            "averages over windows of several sizes; a bound is known for ceil_mode=False, "
            "count_include_pad=True and divisor_override=None"
        )
    count, places = math.prod(occurrences(geometry)), math.prod(geometry.kernel_size)
    return Sphere(reachable.radius * math.sqrt(count / places))


def adaptive_average_pool(layer: Any, reachable: Reachable, walk: Walk) -> Reachable:
    """Windows side by side, of `1 / sqrt(places)` each; of smaller images they are smaller."""
    return Sphere(reachable.radius * max(_window_norm(layer, size) for size in walk.sides(layer)))


def _window_norm(layer: Any, size: torch.Size) -> float:
    wanted = layer.output_size
    wanted = wanted if isinstance(wanted, tuple) else (wanted,) * len(size)
    outputs = [pixels if out is None else out for pixels, out in zip(size, wanted, strict=True)]
    if any(pixels % out for pixels, out in zip(size, outputs, strict=True)):
        raise ValueError(
            f"makes {tuple(outputs)} of {tuple(size)} by windows that overlap; a bound is known "
            "where the sizes divide"
        )
    return math.sqrt(math.prod(outputs) / math.prod(size))


def _bent(least: float, most: float, reachable: Reachable, walk: Walk) -> Reachable:
    """Slopes from `least` to `most` on one side, 1 on the other."""
    if least < 0.0:
        return Sphere(reachable.radius * max(1.0, most, -least))
    return walk.activate(reachable, max(1.0, most))


def _on_vectors(layer: nn.Module, walk: Walk) -> bool:
    return all(len(shape) == 2 for shape in walk.shapes(layer))


def _pooling(layer: Any, walk: Walk, dilation: Any) -> Geometry:
    dimensions = max(map(len, walk.sides(layer)))

    def pair(value: Any, absent: int) -> tuple[int, int]:
        values = value if isinstance(value, tuple) else (value,) * dimensions
        return (absent, values[0]) if dimensions == 1 else values

    moves = pair(layer.stride, 1), pair(layer.padding, 0), pair(dilation, 1)
    return Geometry(pair(layer.kernel_size, 1), *moves)


GELU_SLOPE = 1.13
"""At most 1.12891 in the exact form, at `sqrt 2`, and 1.12900 in that with tanh."""
SILU_SLOPE = 1.1
"""At most 1.09984."""

LAYERS.update(
    {
        nn.Linear: linear,
        LowRankLinear: linear,
        Normalised: scaling,
        nn.BatchNorm1d: normalisation,
        nn.BatchNorm2d: normalisation,
        nn.LeakyReLU: leaky,
        nn.PReLU: parametric,
        nn.ELU: exponential,
        nn.Softplus: softplus,
        nn.Sigmoid: slopes_up_to(0.25),
        nn.GELU: constant(GELU_SLOPE),
        nn.SiLU: constant(SILU_SLOPE),
        nn.MaxPool1d: max_pool,
        nn.MaxPool2d: max_pool,
        nn.AvgPool1d: average_pool,
        nn.AvgPool2d: average_pool,
        nn.AdaptiveAvgPool1d: adaptive_average_pool,
        nn.AdaptiveAvgPool2d: adaptive_average_pool,
    }
)
MONOTONE: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Tanh,
    nn.Softsign,
    nn.LogSigmoid,
)
ISOMETRIES: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
)
LAYERS.update(dict.fromkeys(MONOTONE, slopes_up_to(1.0)))
LAYERS.update(dict.fromkeys(ISOMETRIES, unchanged))
LAYERS[nn.Unflatten] = constant(1.0)
