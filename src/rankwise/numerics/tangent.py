"""Tangent vectors of the manifold of rank-r matrices (Koch and Lubich, 2007).

At `W = U S V^T` a tangent vector is `xi = K V^T + U L^T - U C V^T` with
`K = xi V` (m, r), `L = xi^T U` (n, r), `C = U^T xi V = U^T K = L^T V` (r, r).
One backward pass gives the three for the gradient: `K = G V`, `L = G^T U`, `C = U^T G V`.
"""

from typing import NamedTuple

from torch import Tensor

from rankwise.numerics.factors import Factors


class Tangent(NamedTuple):
    """`xi = K V^T + U L^T - U C V^T`, coordinates with respect to the bases of a `Factors`."""

    K: Tensor
    L: Tensor
    C: Tensor

    def dense(self, f: Factors) -> Tensor:
        return self.K @ f.V.mT + f.U @ (self.L.mT - self.C @ f.V.mT)


def project(f: Factors, G: Tensor) -> Tangent:
    """`P(W) G = G V V^T + U U^T G - U U^T G V V^T`, the tangent part of a dense `G` (m, n)."""
    K = G @ f.V
    return Tangent(K, G.mT @ f.U, f.U.mT @ K)


def inner(a: Tangent, b: Tangent) -> Tensor:
    """`<xi, eta> = <K, K'> + <L, L'> - <C, C'>`, the Frobenius inner product, in O((m + n) r)."""
    return (a.K * b.K).sum() + (a.L * b.L).sum() - (a.C * b.C).sum()


def squared_norm(xi: Tangent) -> Tensor:
    """`||xi||_F^2 = ||K||^2 + ||L||^2 - ||C||^2` in O((m + n) r)."""
    return inner(xi, xi).clamp_min(0.0)
