"""Whether what was given is a number, or a loss, at all, before it is used."""

from numbers import Integral, Real
from typing import Any

from torch import Tensor


def check_number(argument: str, value: Any) -> None:
    """TypeError, naming the argument, for what is no number; a tensor of one element is."""
    single = isinstance(value, Tensor) and value.numel() == 1
    if not single and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"`{argument}` must be a number, got {value!r}")


def check_integer(argument: str, value: Any) -> None:
    """TypeError, naming the argument, for what is no integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{argument}` must be an int, got {value!r}")


def check_loss(argument: str, value: Any) -> None:
    """TypeError, naming the function, for what cannot be the loss of a batch."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = type(value).__name__
        if isinstance(value, Tensor):
            needs = "with" if value.requires_grad else "without"
            got = f"one of shape {tuple(value.shape)} {needs} a gradient"
        raise TypeError(f"`{argument}` must return a 0-dim tensor with a gradient, got {got}")
