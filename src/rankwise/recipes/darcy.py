"""Darcy flow: the map from a permeability to the pressure that it leads to, and networks for it.

`-div(a grad u) = f` on the unit square, `u = 0` at its border, `f` constant; `a` takes two values.
The map `a -> u` is nonlinear, and compact: `u` is smooth where `a` jumps.
"""

import io
import zipfile
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from rankwise.recipes.packages import Package, archive_of

NEURALOPERATOR = Package(
    "neuraloperator",
    "0.3.0",
    "483b358f2d9823c2ccb5dd0c1af8d21f879fd103806ad42959ebb975260e6ec4",
    kind="wheel",
)
FOLDER = "neuralop/datasets/data"
SIDE = 15
POINTS = SIDE * SIDE
HELD_OUT = 200
SYMMETRIES = 8
CORRECTIONS = 4


class Flows(NamedTuple):
    """Coefficients and their solutions, (rows, 15, 15) each, at the inner points of a grid."""

    a: Tensor
    """-1 where the permeability is low, 1 where it is high."""
    u: Tensor
    """In the units of the data, 0.4 on average."""


class Darcy(NamedTuple):
    """800 flows to learn from, 200 of the same file to judge by, and the 50 of the test file."""

    train: Flows
    held_out: Flows
    test: Flows


def darcy() -> Darcy:
    """The data of Li et al. (2021) on 16 x 16 points, as the package `neuraloperator` ships them.

    Raises RuntimeError where the package cannot be fetched.
    """
    with zipfile.ZipFile(archive_of(NEURALOPERATOR)) as archive:
        train, test = (
            _flows(archive.read(f"{FOLDER}/darcy_{part}_16.pt")) for part in ("train", "test")
        )
    learned, held_out = (
        Flows(train.a[part], train.u[part]) for part in (slice(-HELD_OUT), slice(-HELD_OUT, None))
    )
    return Darcy(learned, held_out, test)


def _flows(content: bytes) -> Flows:
    file = torch.load(io.BytesIO(content), weights_only=True)
    # The first row and column are the border, where u = 0; the last are one cell away from it.
    # Without the first, the grid is its own mirror image.
    a, u = file["x"][:, 1:, 1:], file["y"][:, 1:, 1:]
    return Flows(2.0 * a.float() - 1.0, u.float())


def mirrored(flows: Flows, symmetry: int) -> Flows:
    """The flows under one of the 8 symmetries of the square, of which each is a flow again."""
    return Flows(*(_mirrored(field, symmetry) for field in flows))


def _mirrored(field: Tensor, symmetry: int) -> Tensor:
    field = field.mT if symmetry & 1 else field
    axes = [axis for axis, bit in ((-2, 2), (-1, 4)) if symmetry & bit]
    return field.flip(axes) if axes else field


def relative_error(guess: Tensor, u: Tensor) -> Tensor:
    """`||guess - u|| / ||u||` of each row, norms over the grid."""
    return (guess - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)


class Scale(NamedTuple):
    """Solutions as `u = mean + deviation v`: a field, and one number, which keeps L2 what it is."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, u: Tensor) -> "Scale":
        """Of these solutions and their mirror images."""
        mean = torch.stack([_mirrored(u.mean(0), k) for k in range(SYMMETRIES)]).mean(0)
        return cls(mean, (u - mean).square().mean().sqrt())

    def normalised(self, u: Tensor) -> Tensor:
        return (u - self.mean) / self.deviation

    def restored(self, v: Tensor) -> Tensor:
        return self.mean + self.deviation * v


class Correction(nn.Module):
    """`v + B gelu(A [a, v] + b) + c`: what a better solution differs by, seen from `a` and `v`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * POINTS, width)
        self.outer = nn.Linear(width, POINTS)

    def forward(self, a: Tensor, v: Tensor) -> Tensor:
        return v + self.outer(gelu(self.inner(torch.cat([a, v], dim=-1))))


class SolutionOperator(nn.Module):
    """`a -> u` as an iteration from the mean solution, of which each step has maps of its own.

    Args:
        scale: of the solutions that it is trained on.
        width: hidden units of a correction.
        corrections: how many follow one another.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, scale: Scale, width: int = 256, corrections: int = CORRECTIONS) -> None:
        super().__init__()
        self.corrections = nn.ModuleList(Correction(width) for _ in range(corrections))
        self.register_buffer("mean", scale.mean)
        self.register_buffer("deviation", scale.deviation)

    def forward(self, a: Tensor) -> Tensor:
        """Solutions in the units of the data, of the shape of `a`."""
        rows = a.flatten(1)
        v = torch.zeros_like(rows)
        for correction in self.corrections:
            v = correction(rows, v)
        return Scale(self.mean, self.deviation).restored(v.unflatten(1, (SIDE, SIDE)))


def weights(width: int, corrections: int = CORRECTIONS) -> int:
    """Numbers in the matrices of a dense `SolutionOperator`, biases left out."""
    return corrections * 3 * POINTS * width
