"""Matrices and factors with prescribed singular values, in float64."""

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors

SHAPES = [(7, 5), (5, 7), (6, 6), (40, 30)]
SHAPES_AND_RANKS = [(m, n, r) for m, n in SHAPES for r in (1, 3, min(m, n))]

SPECTRA = {
    "generic": lambda r: torch.linspace(2.0, 0.5, r, dtype=torch.float64),
    "repeated": lambda r: torch.full((r,), 0.7, dtype=torch.float64),
    "graded to 1e-8": lambda r: torch.logspace(0, -8, r, dtype=torch.float64),
    "rank-deficient": lambda r: torch.tensor([1.0, 0.5] + [0.0] * r, dtype=torch.float64)[:r],
    "zero": lambda r: torch.zeros(r, dtype=torch.float64),
}


def normal(*shape: int, draw: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=draw)


def orthonormal(m: int, k: int, draw: torch.Generator) -> Tensor:
    """Columns of a random rotation, made here without the code under test."""
    return torch.linalg.svd(normal(m, k, draw=draw), full_matrices=False)[0]


def matrix(m: int, n: int, sigma: Tensor, draw: torch.Generator) -> Tensor:
    """A dense matrix with these singular values and no others but zero."""
    k = sigma.shape[0]
    return orthonormal(m, k, draw) @ torch.diag(sigma) @ orthonormal(n, k, draw).mT


def factors(m: int, n: int, sigma: Tensor, draw: torch.Generator) -> Factors:
    """Factors whose core is neither diagonal nor symmetric and has these singular values."""
    r = sigma.shape[0]
    return Factors(orthonormal(m, r, draw), matrix(r, r, sigma, draw), orthonormal(n, r, draw))


def projector(Q: Tensor) -> Tensor:
    return Q @ Q.mT


def dense_projection(f: Factors, G: Tensor) -> Tensor:
    """`P(W) G = U U^T G + G V V^T - U U^T G V V^T`, as written in the papers."""
    P, Q = projector(f.U), projector(f.V)
    return P @ G + G @ Q - P @ G @ Q


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
