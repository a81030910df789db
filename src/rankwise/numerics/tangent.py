"""Tangent vectors of the manifold of rank-r matrices (Koch and Lubich, 2007).

At `W = U S V^T` a tangent vector is `xi = K V^T + U L^T - U C V^T` with
`K = xi V` (m, r), `L = xi^T U` (n, r), `C = U^T xi V = U^T K = L^T V` (r, r).
One backward pass gives the three for the gradient: `K = G V`, `L = G^T U`, `C = U^T G V`.
A step (`squares`, `scaled_sides`, `transport`, `displaced`) may be that of stacked matrices.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import times
from rankwise.numerics.retract import Spectrum, displaced, whole


class Tangent(NamedTuple):
    """`xi = K V^T + U L^T - U C V^T`, coordinates with respect to the bases of a `Factors`."""

    K: Tensor
    L: Tensor
    C: Tensor

    def dense(self, f: Factors) -> Tensor:
        left, right = split(f, self)
        return left @ right.mT

    def like(self, K: Tensor, L: Tensor, C: Tensor) -> "Tangent":
        return Tangent(K, L, C)

    def squares(self) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = self.K.square().sum(-1), self.L.square().sum(-1)
        inside = self.C.square().sum((-2, -1))
        return rows, columns, rows.sum(-1) + columns.sum(-1) - inside

    def squared_norm(self) -> Tensor:
        return squared_norm(self)

    def along(self, at: Factors) -> Tensor:
        return (self.C * at.S).sum()

    def inner_product(self, at: Factors, W: Factors) -> Tensor:
        return inner_product(at, self, W)

    def scaled_sides(self, at: Factors, row: Tensor, column: Tensor) -> "Tangent":
        rows, columns = at.U * row[..., None], at.V * column[..., None]
        UU, VV = at.U.mT @ rows, at.V.mT @ columns
        KU, LV = self.K.mT @ rows, self.L.mT @ columns
        X, Y = LV - self.C @ VV, KU - self.C.mT @ UU
        K = times(self.K, VV).add_(times(at.U, X)).mul_(row[..., None])
        L = times(self.L, UU).add_(times(at.V, Y)).mul_(column[..., None])
        return Tangent(K, L, KU.mT @ VV + UU @ X)

    def transport(self, old: Factors, new: Factors) -> "Tangent":
        UU, VV = old.U.mT @ new.U, old.V.mT @ new.V
        KU, LV = self.K.mT @ new.U, self.L.mT @ new.V
        X, Y = LV - self.C @ VV, KU - self.C.mT @ UU
        K = times(self.K, VV).add_(times(old.U, X))
        L = times(self.L, UU).add_(times(old.V, Y))
        return Tangent(K, L, KU.mT @ VV + UU.mT @ X)

    def displaced(self, at: Factors, take: Callable[[Tensor], Tensor] = whole) -> Spectrum:
        return displaced(at, self, take)


def project(f: Factors, G: Tensor) -> Tangent:
    """`P(W) G = G V V^T + U U^T G - U U^T G V V^T`, the tangent part of a dense `G` (m, n)."""
    K = G @ f.V
    return Tangent(K, G.mT @ f.U, f.U.mT @ K)


def split(f: Factors, xi: Tangent) -> tuple[Tensor, Tensor]:
    """`A` (m, 2r) and `B` (n, 2r) with `xi = A B^T`: `A = [K, U]`, `B = [V, L - V C^T]`."""
    return torch.cat([xi.K, f.U], dim=-1), torch.cat([f.V, xi.L - f.V @ xi.C.mT], dim=-1)


def add(a: Tangent, b: Tangent) -> Tangent:
    """`a + b`, both tangent at the same point."""
    return Tangent(*(x + y for x, y in zip(a, b, strict=True)))


def subtract(a: Tangent, b: Tangent) -> Tangent:
    """`a - b`, both tangent at the same point."""
    return Tangent(*(x - y for x, y in zip(a, b, strict=True)))


def inner(a: Tangent, b: Tangent) -> Tensor:
    """`<xi, eta> = <K, K'> + <L, L'> - <C, C'>`, the Frobenius inner product, in O((m + n) r)."""
    return (a.K * b.K).sum() + (a.L * b.L).sum() - (a.C * b.C).sum()


def inner_product(f: Factors, xi: Tangent, W: Factors) -> Tensor:
    """`<xi, W>` for `xi` tangent at `f` and any factored `W`, in O((m + n) r^2)."""
    UU, VV = f.U.mT @ W.U, f.V.mT @ W.V
    middle = (W.U.mT @ xi.K) @ VV + UU.mT @ (xi.L.mT @ W.V) - UU.mT @ xi.C @ VV
    return (middle * W.S).sum()


def squared_norm(xi: Tangent) -> Tensor:
    """`||xi||_F^2 = ||K||^2 + ||L||^2 - ||C||^2` in O((m + n) r)."""
    return inner(xi, xi).clamp_min(0.0)
