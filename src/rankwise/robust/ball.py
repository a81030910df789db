"""The sets that perturbations are taken from: balls around each sample, by their geometry."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Ball(ABC):
    """Perturbations of bounded size; every row of a tensor (rows, ...) is one of its own."""

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """The norm of each row, (rows,)."""

    @abstractmethod
    def steepest(self, g: Tensor) -> Tensor:
        """The step of size 1 along which a function of gradient `g` grows fastest; 0 where `g` is.

        `g` must be finite; its scale does not matter, however large or small.
        """

    @abstractmethod
    def project(self, delta: Tensor, eps: float) -> Tensor:
        """The nearest point of the ball of radius `eps`, in the Euclidean distance."""

    @abstractmethod
    def sample(self, like: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        """Uniform in the ball of radius `eps`; shape, type and device of `like`.

        `generator` lives on the CPU, so that a seed means the same on every device.
        """


@dataclass(frozen=True)
class Linf(Ball):
    """No entry changes by more than eps."""

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def steepest(self, g: Tensor) -> Tensor:
        return g.sign()

    def project(self, delta: Tensor, eps: float) -> Tensor:
        return delta.clamp(-eps, eps)

    def sample(self, like: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        u = torch.rand(like.shape, generator=generator, dtype=like.dtype)
        return ((2 * u - 1) * eps).to(like.device)


@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean length of the change is at most eps."""

    def size(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)

    def steepest(self, g: Tensor) -> Tensor:
        # Largest entries one first, so that no square under- or overflows.
        scaled = g / positive(per_row(g.flatten(1).abs().amax(1), g))
        return scaled / positive(per_row(self.size(scaled), g))

    def project(self, delta: Tensor, eps: float) -> Tensor:
        size = positive(per_row(self.size(delta), delta))
        return torch.where(size > eps, delta * (eps / size), delta)

    def sample(self, like: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        normal = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        u = torch.rand(len(like), generator=generator, dtype=like.dtype)
        # The share of the ball within radius r is r^d.
        radius = eps * u ** (1 / like[0].numel())
        return (self.steepest(normal) * per_row(radius, normal)).to(like.device)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(rows,) in a shape that multiplies `like` (rows, ...) row by row."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def positive(t: Tensor) -> Tensor:
    """`t` >= 0 made safe to divide by: 1 where it is 0."""
    return torch.where(t == 0, torch.ones_like(t), t)
