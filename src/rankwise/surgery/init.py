"""Where the factors of a layer that becomes low rank start from."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from rankwise.numerics.given import check_integer, check_number
from rankwise.surgery.dense_map import DenseMap


class Init(ABC):
    """Makes the factors that stand for a layer's weight."""

    @abstractmethod
    def factors(self, name: str, layer: DenseMap, rank: int) -> Any:
        """Factors of that rank for the weight of `layer`, of its type and device."""


@dataclass(frozen=True)
class TruncatedSVD(Init):
    """The best approximation of the present weight; of a kernel in Tucker form, the HOSVD."""

    def factors(self, name: str, layer: DenseMap, rank: int) -> Any:
        return layer.truncated(rank)


@dataclass(frozen=True)
class Random(Init):
    """Random bases and equal singular values, for training from scratch.

    `U S V^T` gets the Frobenius norm of the present weight. For isotropic inputs the variance of
    activations and of gradients is then the one that the dense layer starts with:
    `E ||W x||^2 = ||W||_F^2 E ||x||^2 / n`, and the same of `W^T`. (A truncated SVD of a random
    weight keeps `rank / min(m, n)` of it at best.)

    Args:
        seed: the bases depend on it and on the name of the layer, on nothing else.
        gain: times the norm of the weight, > 0.
    """

    seed: int = 0
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_integer("Random(seed=...)", self.seed)
        check_number("Random(gain=...)", self.gain)
        if not 0.0 < self.gain < float("inf"):
            raise ValueError(f"`Random(gain=...)` must be positive and finite, got {self.gain}")

    def factors(self, name: str, layer: DenseMap, rank: int) -> Any:
        W = layer.matrix
        norm = float(torch.linalg.matrix_norm(W.float()))
        if norm == 0.0:
            raise ValueError(
                f"the weight of layer {name!r} is zero, which gives `Random()` no size to start "
                "with: leave the layer out, or initialise it first"
            )
        return layer.random(rank, self.gain * norm / len(W) ** 0.5, stream(self.seed, name))


def stream(seed: int, name: str) -> torch.Generator:
    """Random numbers for one layer: its start does not depend on what else is selected."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
