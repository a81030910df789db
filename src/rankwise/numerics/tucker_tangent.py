"""Tangent vectors of the manifold of Tucker kernels, and steps along them (Koch and Lubich, 2010).

At `W = core x1 U x2 V` with the unit cores `A`, `B` of `unit_cores`, a tangent vector is

    xi = C x1 U x2 V + A x1 (K - U U^T K) x2 V + B x1 U x2 (L - V V^T L),

three parts that are orthogonal to each other. `K = xi_(1) V1` (out, p), `L = xi_(2) U2` (in, q),
`C = xi x1 U^T x2 V^T` (p, q, kh, kw), where `V1^T` is mode 1 of `A x2 V` and `U2^T` mode 2 of
`B x1 U`, both with orthonormal rows. One backward pass gives the three for the gradient. There is
no inverse: `A` and `B` are orthonormal however small the singular values of the core are.

TDLRT (Zangrando, Schotthoefer, Ceruti, Kusch and Tudisco, NeurIPS 2024) in its parallel form.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.numerics.orth import augment
from rankwise.numerics.retract import whole
from rankwise.numerics.tucker import (
    Tucker,
    first_mode,
    leading,
    left_singular,
    second_mode,
    times_first,
    times_second,
    unit_cores,
)


class TuckerTangent(NamedTuple):
    """A tangent vector by its coordinates, with the unit cores of the point where it is tangent."""

    K: Tensor
    L: Tensor
    C: Tensor
    A: Tensor
    B: Tensor

    def like(self, K: Tensor, L: Tensor, C: Tensor) -> "TuckerTangent":
        return self._replace(K=K, L=L, C=C)

    def dense(self, at: Tucker) -> Tensor:
        return Tucker(*split(at, self)).dense()

    def squares(self) -> tuple[Tensor, Tensor, Tensor]:
        """`||xi||^2 = ||C||^2 + ||K||^2 - ||U^T K||^2 + ||L||^2 - ||V^T L||^2`.

        `U^T K` is `C_(1) A_(1)^T`, and `V^T L` likewise.
        """
        rows, columns = self.K.square().sum(1), self.L.square().sum(1)
        inside_K = first_mode(self.C) @ first_mode(self.A).mT
        inside_L = second_mode(self.C) @ second_mode(self.B).mT
        inside = self.C.square().sum() - inside_K.square().sum() - inside_L.square().sum()
        return rows, columns, rows.sum() + columns.sum() + inside

    def squared_norm(self) -> Tensor:
        return self.squares()[2].clamp_min(0.0)

    def along(self, at: Tucker) -> Tensor:
        return (self.C * at.core).sum()

    def inner_product(self, at: Tucker, W: Tucker) -> Tensor:
        X, M, Y = split(at, self)
        return (times_second(times_first(M, W.U.mT @ X), W.V.mT @ Y) * W.core).sum()

    def scaled_sides(self, at: Tucker, row: Tensor, column: Tensor) -> "TuckerTangent":
        X, M, Y = split(at, self)
        return _project(at, (self.A, self.B), X * row[:, None], M, Y * column[:, None])

    def transport(self, old: Tucker, new: Tucker) -> "TuckerTangent":
        return _project(new, unit_cores(new.core), *split(old, self))

    def displaced(self, at: Tucker, take: Callable[[Tensor], Tensor] = whole) -> "TuckerSpectrum":
        U_hat, V_hat = augment(at.U, self.K), augment(at.V, self.L)
        core = take(core_of(U_hat, V_hat, self)).neg()
        p, q = at.ranks
        core[:p, :q] += at.core
        return TuckerSpectrum(
            U_hat, core, V_hat, *left_singular(first_mode(core)), *left_singular(second_mode(core))
        )


class TuckerSpectrum(NamedTuple):
    """A kernel in augmented bases, with left singular vectors and values of both its modes."""

    U_hat: Tensor
    core: Tensor
    V_hat: Tensor
    P: Tensor
    sigma_first: Tensor
    Q: Tensor
    sigma_second: Tensor

    def spectra(self) -> list[Tensor]:
        return [self.sigma_first, self.sigma_second]

    def cut_to(self, ranks: Sequence[int], shaped: Callable[[Tensor], Tensor] = whole) -> Tucker:
        """Sequentially truncated HOSVD; the error is at most the root of the sum of both tails.

        A rank that the other mode, cut to its own, cannot fill is lowered to what it can. Its
        output channels get the spectrum `shaped`, see `shape_first`.
        """
        places = self.core[0, 0].numel()
        p, q = ranks
        p = min(p, q * places)
        q = min(q, p * places)
        P = self.P[:, :p]
        rows = times_first(self.core, P.mT)
        untouched = p == self.P.shape[1]
        Q = self.Q[:, :q] if untouched else leading(second_mode(rows), q)
        new = Tucker(self.U_hat @ P, times_second(rows, Q.mT), self.V_hat @ Q)
        return new if shaped is whole else shape_first(new, shaped)


def shape_first(f: Tucker, shaped: Callable[[Tensor], Tensor]) -> Tucker:
    """The singular values (p,) of mode 1 of the core replaced; zeros stay, having no direction."""
    P, sigma = left_singular(first_mode(f.core))
    factors = torch.where(sigma > 0, shaped(sigma) / sigma, 0.0)
    return f._replace(core=times_first(f.core, (P * factors) @ P.mT))


def tangent_at(f: Tucker, K: Tensor, L: Tensor, C: Tensor) -> TuckerTangent:
    """The tangent vector at `f` with these coordinates."""
    return TuckerTangent(K, L, C, *unit_cores(f.core))


def project_kernel(f: Tucker, G: Tensor) -> TuckerTangent:
    """`P(W) G`, the tangent part of a dense `G` (out, in, kh, kw)."""
    A, B = unit_cores(f.core)
    right, left = times_second(G, f.V.mT), times_first(G, f.U.mT)
    K = first_mode(right) @ first_mode(A).mT
    L = second_mode(left) @ second_mode(B).mT
    return TuckerTangent(K, L, times_first(right, f.U.mT), A, B)


def split(f: Tucker, xi: TuckerTangent) -> tuple[Tensor, Tensor, Tensor]:
    """`X` (out, 2p), `M` (2p, 2q, kh, kw), `Y` (in, 2q) with `xi = M x1 X x2 Y`, not orthonormal.

    `X = [U, K - U U^T K]`, `Y = [V, L - V V^T L]`, `M = [[C, B], [A, 0]]`.
    """
    X = torch.cat([f.U, xi.K - f.U @ (f.U.mT @ xi.K)], dim=1)
    Y = torch.cat([f.V, xi.L - f.V @ (f.V.mT @ xi.L)], dim=1)
    upper = torch.cat([xi.C, xi.B], dim=1)
    lower = torch.cat([xi.A, torch.zeros_like(xi.A)], dim=1)
    return X, torch.cat([upper, lower]), Y


def core_of(U_hat: Tensor, V_hat: Tensor, xi: TuckerTangent) -> Tensor:
    """`xi x1 U_hat^T x2 V_hat^T` for `U_hat = [U, U~]` and `V_hat = [V, V~]` that hold it.

    `[[C, B x2 V~^T L], [A x1 U~^T K, 0]]`, (p_hat, q_hat, kh, kw).
    """
    p, q, *kernel = xi.C.shape
    core = xi.C.new_zeros(U_hat.shape[1], V_hat.shape[1], *kernel)
    core[:p, :q] = xi.C
    core[p:, :q] = times_first(xi.A, U_hat[:, p:].mT @ xi.K)
    core[:p, q:] = times_second(xi.B, V_hat[:, q:].mT @ xi.L)
    return core


def _project(
    f: Tucker, units: tuple[Tensor, Tensor], X: Tensor, M: Tensor, Y: Tensor
) -> TuckerTangent:
    """`P(W) (M x1 X x2 Y)` at `f` with the unit cores `units`, nothing dense."""
    A, B = units
    left, right = f.U.mT @ X, f.V.mT @ Y
    inner_right = times_second(M, right)
    K = X @ (first_mode(inner_right) @ first_mode(A).mT)
    L = Y @ (second_mode(times_first(M, left)) @ second_mode(B).mT)
    return TuckerTangent(K, L, times_first(inner_right, left), A, B)
