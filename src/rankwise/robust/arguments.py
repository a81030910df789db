"""Checks of what users hand to attacks: at once, and saying what to write instead."""

import math
from typing import Any

import torch
from torch import Tensor

from rankwise.nn.base import check_module
from rankwise.robust.ball import Ball
from rankwise.robust.region import Bounds


def check_batch(model: Any, x: Any, y: Any) -> None:
    """TypeError or ValueError unless these are a model, inputs (rows, ...) and labels (rows,)."""
    check_module(model)
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"`x` must be floating, got {x.dtype}; bytes of an image become `x.float() / 255`"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"`x` must be (rows, ...) and not empty, got shape {tuple(x.shape)}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"`y` must hold integer class labels, got {y.dtype}; try `y.long()`")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"`y` must be ({len(x)},), one label for each row of `x`, got {tuple(y.shape)}"
        )


def check_eps(eps: Any) -> float:
    """`eps` as a float; TypeError or ValueError unless it is a finite number >= 0."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"`eps` must be a number, got {eps!r}")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"`eps` must be finite and >= 0, got {eps}")
    return float(eps)


def checked_bounds(bounds: Any) -> Bounds:
    """`bounds` as floats; ValueError unless None or a finite lower and a larger upper one."""
    if bounds is None:
        return None
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        raise ValueError(
            f"`bounds` must be (lowest, highest), such as (0.0, 1.0), or None, got {bounds!r}"
        ) from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"`bounds` must be finite, the first below the second, got {bounds!r}")
    return low, high


def check_inside(x: Tensor, bounds: Bounds) -> None:
    """ValueError unless all of `x` is finite and inside `bounds`."""
    low, high = (t.item() for t in x.detach().aminmax())
    if not -math.inf < low <= high < math.inf:
        raise ValueError("`x` has entries that are not finite")
    if bounds is not None and not bounds[0] <= low <= high <= bounds[1]:
        raise ValueError(
            f"`x` has values from {low:g} to {high:g}, outside `bounds` {bounds}; for normalised "
            "inputs pass `bounds=None`, or wrap the model in `Normalised` and give pixel values"
        )


def check_count(owner: str, name: str, value: Any) -> None:
    """ValueError unless `value` is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{owner}({name}=...)` must be an integer >= 1, got {value!r}")


def check_number(owner: str, name: str, value: Any, *, above: float, inclusive: bool) -> None:
    """ValueError unless `value` is finite and larger than `above`, or equal if `inclusive`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (above < value < math.inf or (inclusive and value == above)):
        sign = ">=" if inclusive else ">"
        raise ValueError(
            f"`{owner}({name}=...)` must be finite and {sign} {above:g}, got {value!r}"
        )


def check_ball(owner: str, ball: Any) -> None:
    """TypeError unless `ball` is one."""
    if not isinstance(ball, Ball):
        raise TypeError(f"`{owner}(ball=...)` must be `Linf()` or `L2()`, got {ball!r}")
