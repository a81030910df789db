"""A few numbers by which a large matrix is known again, also after rounding to a shorter type.

A hash would change with every rounding, and a model is trained in float32 and served in bfloat16.
So the mark is a sample of the entries themselves: it tells a copy in another precision, whose
entries differ by rounding and no more, from other weights, and by how much those differ.
"""

from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 64
GOLDEN = 0.6180339887498949
"""`frac(i * GOLDEN)` spreads evenly over (0, 1) for any number of points (Weyl, 1916); equal
strides would often fall into a single column."""
PRECISIONS: tuple[tuple[torch.dtype, float], ...] = (
    (torch.bfloat16, 2.0**-8),
    (torch.float16, 2.0**-11),
)
"""Shorter types with their unit roundoff."""
SMALLEST = 2.0**-24
"""Spacing of float16 near zero, where rounding is absolute."""


class Likeness(Enum):
    """What two samples say of the matrices that they are from."""

    SAME = "the same"
    ROUNDED = "the same in another precision"
    OTHER = "another"


class Fingerprint(NamedTuple):
    """Entries of a matrix at `SIZE` places (all of a smaller one), float32 on the CPU."""

    values: Tensor

    @property
    def rms(self) -> float:
        """Root of the mean square: `||W||_F / sqrt(numel)`, to about a tenth."""
        return float(self.values.square().mean().sqrt())


def fingerprint(W: Tensor) -> Fingerprint | None:
    """The fingerprint of `W`, of any shape; one copy of `SIZE` numbers from its device.

    None where entries cannot be compared: a quantised or sharded tensor (integers, one byte a
    number, a subclass of Tensor), a meta tensor, an empty one.
    """
    plain = type(W) in (Tensor, torch.nn.Parameter) and not W.is_meta and not W.is_sparse
    if not plain or not W.is_floating_point() or W.element_size() < 2 or W.numel() == 0:
        return None
    columns = W.shape[-1] if W.ndim else 1
    rows = W.detach().reshape(-1, columns) if W.ndim != 2 else W.detach()
    at = _index(W.numel(), columns)
    return Fingerprint(rows[at[0].to(W.device), at[1].to(W.device)].float().cpu())


def places(count: int) -> list[int]:
    """Which entries of `count` are taken, counted by rows."""
    if count <= SIZE:
        return list(range(count))
    return [int((i * GOLDEN % 1.0) * count) for i in range(SIZE)]


@lru_cache(maxsize=64)
def _index(count: int, columns: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of these places; a model has few shapes."""
    at = torch.tensor(places(count), device="cpu")
    return at // columns, at % columns


def likeness(a: Fingerprint, b: Fingerprint) -> Likeness:
    """Whether `a` and `b` are of one matrix.

    Samples in float32 must agree to the last bit; of two precisions, within the rounding of both.
    Of one shorter type, large entries must agree and small ones up to what float16 makes of them.
    """
    if a.values.shape != b.values.shape:
        return Likeness.OTHER
    if torch.equal(a.values, b.values):
        return Likeness.SAME
    first, second = _roundoff(a.values), _roundoff(b.values)
    if first == second == 0:
        return Likeness.OTHER
    # What bfloat16 holds above `SMALLEST`, float16 holds exactly: the result looks like bfloat16.
    relative = 0.0 if first == second else first + second
    allowed = relative * torch.maximum(a.values.abs(), b.values.abs()) + SMALLEST
    within = (a.values - b.values).abs() <= allowed
    return Likeness.ROUNDED if bool(within.all()) else Likeness.OTHER


def difference(a: Fingerprint, b: Fingerprint) -> float:
    """`||A - B|| / ||A||` over the sample; sqrt(2) for matrices that have nothing in common."""
    if a.values.shape != b.values.shape:
        return float("inf")
    norm = torch.linalg.vector_norm(a.values)
    distance = torch.linalg.vector_norm(a.values - b.values)
    return float(distance / norm) if norm > 0 else float("inf")


def _roundoff(values: Tensor) -> float:
    """Of the shortest type that holds all of `values`; 0 for float32."""
    for dtype, unit in PRECISIONS:
        if torch.equal(values.to(dtype).float(), values):
            return unit
    return 0.0
