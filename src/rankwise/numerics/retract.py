"""The retraction: a step in `span[U, X] x span[V, Y]`, and its best approximation of low rank.

All but `cut` and `truncate` take stacked matrices as well, each layer of a network in its place: a
hundred layers then cost as many calls as one. Those of lower rank than others are filled up with
columns of zeros in `U`, `V`, `K`, `L`; a QR puts arbitrary directions in their places.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import augment, augment_with
from rankwise.numerics.svd import svd

if TYPE_CHECKING:
    from rankwise.numerics.tangent import Tangent


def whole(X: Tensor) -> Tensor:
    """Take a displacement, or what is left of a spectrum, as it is."""
    return X


class Frame(NamedTuple):
    """Augmented bases `U_hat = [U, U~]` (m, r_u) and `V_hat = [V, V~]` (n, r_v); r_u, r_v <= 2r."""

    U_hat: Tensor
    V_hat: Tensor


class Spectrum(NamedTuple):
    """A core `P diag(sigma) Qh` in a frame, its singular values descending."""

    frame: Frame
    P: Tensor
    sigma: Tensor
    Qh: Tensor

    def spectra(self) -> list[Tensor]:
        return [self.sigma]

    def cut_to(self, ranks: Sequence[int], shaped: Callable[[Tensor], Tensor] = whole) -> Factors:
        (rank,) = ranks
        return cut(self, rank, shaped)


def frame_of(f: Factors, xi: "Tangent") -> Frame:
    """The augmented bases that hold `f` and the tangent vector `xi` (any `K`, `L`) exactly."""
    return Frame(augment(f.U, xi.K), augment(f.V, xi.L))


def core_of(left: Tensor, right: Tensor, C: Tensor) -> Tensor:
    """`U_hat^T xi V_hat` (r_u, r_v) of `left = U_hat^T K`, `right = V_hat^T L` and `C`.

    That is `[[C, L^T V~], [U~^T K, 0]]`.
    """
    rows, columns = C.shape[-2:]
    core = torch.nn.functional.pad(left, (0, right.shape[-2] - columns))
    core[..., :rows, :] += right.mT
    core[..., :rows, :columns] -= C
    return core


def embed(S: Tensor, core: Tensor) -> Tensor:
    """`[[S, 0], [0, 0]]` in the shape of `core`."""
    return torch.nn.functional.pad(
        S, (0, core.shape[-1] - S.shape[-1], 0, core.shape[-2] - S.shape[-2])
    )


def embed_factors(f: Factors, frame: Frame) -> Factors:
    """The same matrix in the augmented bases of `frame`; its core may be rectangular."""
    core = f.S.new_zeros(frame.U_hat.shape[1], frame.V_hat.shape[1])
    return Factors(frame.U_hat, embed(f.S, core), frame.V_hat)


def decompose(frame: Frame, core: Tensor) -> Spectrum:
    """The spectrum of `core` in `frame`."""
    return Spectrum(frame, *svd(core))


def displaced(f: Factors, xi: "Tangent", take: Callable[[Tensor], Tensor] = whole) -> Spectrum:
    """`W - xi`, exact and not yet cut; `take` may scale and reshape the core of `xi` before."""
    U_hat, left = augment_with(f.U, xi.K)
    V_hat, right = augment_with(f.V, xi.L)
    core = take(core_of(left, right, xi.C))
    return decompose(Frame(U_hat, V_hat), embed(f.S, core) - core)


def cut(s: Spectrum, rank: int, shaped: Callable[[Tensor], Tensor] = whole) -> Factors:
    """The best approximation of that rank: `S` diagonal, the error `||sigma[rank:]||`.

    In place of what is left of `sigma` it gets `shaped(sigma)`.
    """
    return Factors(
        s.frame.U_hat @ s.P[:, :rank],
        torch.diag(shaped(s.sigma[:rank])),
        s.frame.V_hat @ s.Qh[:rank].mT,
    )


def truncate(f: Factors, rank: int) -> Factors:
    """Best approximation of `f` of rank at most `rank`."""
    return cut(decompose(Frame(f.U, f.V), f.S), rank)
