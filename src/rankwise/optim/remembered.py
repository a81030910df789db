"""Whether what a saved state remembers of a layer is something that steps can go on from.

Torch takes any state, and a step would fail in the middle, or train on in silence. Each check is a
ValueError that names the entry.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shapes(NamedTuple):
    """Of the factors of a layer."""

    U: torch.Size
    core: torch.Size
    V: torch.Size


def check_whole(names: Sequence[str], state: Mapping[str, Any]) -> bool:
    """Whether these entries are there: all of them, or none."""
    lacking = [name for name in names if name not in state]
    if 0 < len(lacking) < len(names):
        raise ValueError(f"{lacking[0]!r} is missing")
    return bool(names) and not lacking


def check_tensor(name: str, value: Any, shape: Sequence[int], *, positive: bool = False) -> None:
    """Finite numbers in that shape; no negative ones where they must be `positive`."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{name!r} must be a tensor of numbers, got {type(value).__name__}")
    if value.shape != torch.Size(shape):
        raise ValueError(f"{name!r} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name!r} has NaN or infinite values")
    if positive and bool((value < 0).any()):
        raise ValueError(f"{name!r} has negative values")


def check_tensors(name: str, value: Any, shapes: Sequence[Sequence[int]]) -> None:
    """Three finite tensors in these shapes."""
    check_triple(name, value)
    for part, shape in zip(value, shapes, strict=True):
        check_tensor(name, part, shape)


def check_triple(name: str, value: Any) -> None:
    """A tuple of three tensors."""
    parts = value if isinstance(value, tuple) else ()
    if len(parts) != 3 or not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(f"{name!r} must be three tensors, got {type(value).__name__}")


def check_size(name: str, value: Any) -> None:
    """A positive, finite number."""
    if type(value) not in (int, float) or not 0.0 < value < math.inf:
        raise ValueError(f"{name!r} must be a positive number, got {type(value).__name__}")


def check_count(name: str, value: Any, least: int = 0) -> None:
    """An integer of 63 bits."""
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name!r} must be an integer from {least}, got {type(value).__name__}")
