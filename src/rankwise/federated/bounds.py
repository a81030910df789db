"""What a message may hold, and what the answers of all clients may differ by."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rankwise.federated.message import Arrays
from rankwise.numerics.given import check_integer, check_number


@dataclass(frozen=True)
class Bounds:
    """Limits for what clients send; an answer beyond them is refused.

    They stop what is broken: overflow, a wrong unit, another model. They are no defence against a
    client that means harm and stays within them.

    Args:
        norm: of all numbers of an answer together, by the Euclidean norm, > 0.
        relative: the same norm over the median of the answers of a phase, > 1; of no effect where
            there are fewer than three.
        samples: that one client may claim, >= 1.
    """

    norm: float = 1e6
    relative: float = 1e3
    samples: int = 10**9

    def __post_init__(self) -> None:
        check_number("Bounds(norm=...)", self.norm)
        check_number("Bounds(relative=...)", self.relative)
        check_integer("Bounds(samples=...)", self.samples)
        for name, least in (("norm", 0.0), ("relative", 1.0)):
            if not getattr(self, name) > least:
                raise ValueError(
                    f"`Bounds({name}=...)` must be above {least:g}, got {getattr(self, name)}"
                )
        if self.samples < 1:
            raise ValueError(f"`Bounds(samples=...)` must be at least 1, got {self.samples}")


def flaw_of(arrays: Any, like: Arrays, bound: float = float("inf")) -> str | None:
    """What is wrong with `arrays`, which should have the names, shapes and types of `like`."""
    if not isinstance(arrays, Mapping):
        return f"arrays must be a dict, got {type(arrays).__name__}"
    missing, unexpected = sorted(set(like) - set(arrays)), sorted(set(arrays) - set(like), key=str)
    if missing:
        return f"array {missing[0]!r} is missing"
    if unexpected:
        return f"array {unexpected[0]!r} is unexpected"
    for name, expected in like.items():
        value: Any = arrays[name]
        if type(value) not in (Tensor, Parameter) or value.is_nested:
            return f"array {name!r} must be a plain tensor, got {type(value).__name__}"
        if value.layout != torch.strided or value.device.type != "cpu":
            return f"array {name!r} must be dense and on the CPU, got {value.layout} {value.device}"
        if (value.shape, value.dtype) != (expected.shape, expected.dtype):
            return (
                f"array {name!r} must be {tuple(expected.shape)} {expected.dtype}, got "
                f"{tuple(value.shape)} {value.dtype}"
            )
        if not bool(value.isfinite().all()):
            return f"array {name!r} has NaN or infinite entries"
    size = norm_of(arrays)
    if size <= bound:
        return None
    return (
        f"norm {size:.3g} is above the bound {bound:.3g}; try a smaller `lr`, or a larger "
        "`Bounds(norm=...)` if that is no divergence"
    )


def norm_of(arrays: Mapping[str, Tensor]) -> float:
    """Euclidean norm of all numbers together, in float64."""
    squares = [torch.linalg.vector_norm(arrays[n].detach().double()) for n in sorted(arrays)]
    return float(torch.linalg.vector_norm(torch.stack(squares))) if squares else 0.0


def outliers(norms: Mapping[str, float], relative: float) -> dict[str, str]:
    """By client why its norm is too far above the others; none where most of them are zero."""
    if len(norms) < 3:
        return {}
    middle = median(norms.values())
    if middle == 0.0:
        return {}
    return {
        client: f"norm {size:.3g} is {size / middle:.3g} times the median of the answers"
        for client, size in norms.items()
        if size > relative * middle
    }
