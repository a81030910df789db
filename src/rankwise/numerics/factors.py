"""The factors of a low-rank matrix.

Throughout the package `W = U @ S @ V.T` has the shape of `torch.nn.Linear.weight`:
m = rows = out_features, n = columns = in_features, r = rank. `S` is not assumed diagonal.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.numerics.manifold import Mode
from rankwise.numerics.orth import qr
from rankwise.numerics.svd import svd


class Factors(NamedTuple):
    """`W = U @ S @ V.T` with orthonormal columns in `U` (m, r) and `V` (n, r); `S` is (r, r)."""

    U: Tensor
    S: Tensor
    V: Tensor

    @property
    def rank(self) -> int:
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.U.shape[0], self.V.shape[0]

    @property
    def places(self) -> tuple[int, ...]:
        return ()

    def checked(self) -> "Factors":
        return check_factors(self)

    def dense(self) -> Tensor:
        return self.U @ self.S @ self.V.mT

    def balanced(self) -> tuple[Tensor, Tensor]:
        """`B` (m, r) and `A` (r, n) with `W = B A` and `B^T B = A A^T = diag(sigma)`."""
        half = self.S.dtype not in (torch.float32, torch.float64)
        parts = svd(self.S.float() if half else self.S)
        P, sigma, Qh = (t.to(self.S.dtype) for t in parts)
        root = sigma.sqrt()
        return self.U @ (P * root), root[:, None] * (Qh @ self.V.mT)

    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.S)

    def scaled(self, factor: float) -> "Factors":
        return self._replace(S=self.S * factor)

    def orthonormalised(self) -> "Factors":
        """The same matrix, its bases orthonormal again where rounding or a cast has worn them."""
        (U, R), (V, T) = qr(self.U), qr(self.V)
        return Factors(U, R @ self.S @ T.mT, V)

    def distance(self, other: "Factors") -> Tensor:
        return distance(self, other)

    def modes(self) -> list[Mode]:
        """One rank; a direction is a column of `U`, one of `V` and a singular value."""
        return [Mode(self.rank, self.shape, sum(self.shape) + 1)]


def check_factors(f: Factors) -> Factors:
    """`f` itself if its shapes fit together and its entries are finite, else `ValueError`."""
    U, S, V = f
    if not all(t.ndim == 2 and t.is_floating_point() for t in f):
        named = zip("USV", f, strict=True)
        got = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in named)
        raise ValueError(f"factors must be floating-point matrices, got {got}")
    if not U.shape[1] == S.shape[0] == S.shape[1] == V.shape[1]:
        raise ValueError(
            f"factors must be U (m, r), S (r, r), V (n, r); got U {tuple(U.shape)}, "
            f"S {tuple(S.shape)}, V {tuple(V.shape)}"
        )
    if f.rank > min(f.shape):
        raise ValueError(f"rank {f.rank} exceeds min(m, n) = {min(f.shape)} of a {f.shape} matrix")
    if not all(bool(t.isfinite().all()) for t in f):
        raise ValueError("factors must be finite, got NaN or infinite entries")
    return f


def distance(a: Factors, b: Factors) -> Tensor:
    """`||A - B||_F` in O((m + n) r^2), a 0-dim tensor; the ranks may differ.

    By the parts of `A` outside and inside the spaces of `B`, orthogonal to each other, and not from
    `||A||^2 + ||B||^2 - 2 <A, B>`, of which nothing is left in float32 where `A` is near `B`.
    """
    left, right = b.U.mT @ a.U, b.V.mT @ a.V
    rows = left @ a.S
    outside_left = (a.U - b.U @ left) @ a.S
    outside_right = (a.V - b.V @ right) @ rows.mT
    inside = rows @ right.mT - b.S
    squares = [part.square().sum() for part in (outside_left, outside_right, inside)]
    return torch.stack(squares).sum().sqrt()


def orthonormality_defect(Q: Tensor) -> Tensor:
    """`max |Q^T Q - I|`, a 0-dim tensor; 0 for a matrix without columns."""
    if Q.shape[1] == 0:
        return Q.new_zeros(())
    return (Q.mT @ Q - torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device)).abs().amax()
