"""Kernels of convolutions in Tucker-2 form: a core between bases of the output and input channels.

`W[o, i, y, x] = sum_{a, b} core[a, b, y, x] U[o, a] V[i, b]`, short `core x1 U x2 V`, with
orthonormal `U` (out, p), `V` (in, q). With `k = kh kw` places, mode 1 of a tensor is the matrix
(first index, second index and place), mode 2 the matrix (second, first and place).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.numerics.manifold import Mode
from rankwise.numerics.orth import orthonormalise, qr
from rankwise.numerics.svd import svd


class Tucker(NamedTuple):
    """`W = core x1 U x2 V`: `U` (out, p), `core` (p, q, kh, kw), `V` (in, q)."""

    U: Tensor
    core: Tensor
    V: Tensor

    @property
    def ranks(self) -> tuple[int, int]:
        return self.core.shape[0], self.core.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.U.shape[0], self.V.shape[0]

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(self.core.shape[2:])

    def checked(self) -> "Tucker":
        return check_tucker(self)

    def dense(self) -> Tensor:
        return times_second(times_first(self.core, self.U), self.V)

    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.core)

    def orthonormalised(self) -> "Tucker":
        """The same kernel, its bases orthonormal again, see `Factors`."""
        (U, R), (V, T) = qr(self.U), qr(self.V)
        return Tucker(U, times_second(times_first(self.core, R), T), V)

    def scaled(self, factor: float) -> "Tucker":
        return self._replace(core=self.core * factor)

    def modes(self) -> list[Mode]:
        """Ranks p and q; a direction of a mode owns half of its slice of the core."""
        (p, q), places = self.ranks, self.core[0, 0].numel()
        out_channels, in_channels = self.shape
        return [
            Mode(p, (out_channels, in_channels * places), out_channels + q * places / 2),
            Mode(q, (in_channels, out_channels * places), in_channels + p * places / 2),
        ]

    def distance(self, other: "Tucker") -> Tensor:
        """By parts outside and inside the bases of `other`, as for matrices."""
        left, right = other.U.mT @ self.U, other.V.mT @ self.V
        rows = times_first(self.core, left)
        outside_left = times_first(self.core, self.U - other.U @ left)
        outside_right = times_second(rows, self.V - other.V @ right)
        inside = times_second(rows, right) - other.core
        squares = [part.square().sum() for part in (outside_left, outside_right, inside)]
        return torch.stack(squares).sum().sqrt()


def first_mode(X: Tensor) -> Tensor:
    """`X` (a, b, kh, kw) as the matrix (a, b k)."""
    return X.flatten(1)


def second_mode(X: Tensor) -> Tensor:
    """`X` (a, b, kh, kw) as the matrix (b, a k)."""
    return first_mode(X.transpose(0, 1))


def times_first(X: Tensor, A: Tensor) -> Tensor:
    """`X x1 A`: `A` (m, a) applied to the first index of `X` (a, b, kh, kw)."""
    return (A @ first_mode(X)).unflatten(1, X.shape[1:])


def times_second(X: Tensor, B: Tensor) -> Tensor:
    """`X x2 B`: `B` (n, b) applied to the second index of `X` (a, b, kh, kw)."""
    return times_first(X.transpose(0, 1), B).transpose(0, 1)


def unit_cores(core: Tensor) -> tuple[Tensor, Tensor]:
    """`A`, `B` of the shape of `core` (p, q, kh, kw) with `core = A x1 S1 = B x2 S2`.

    The rows of mode 1 of `A` are orthonormal, and those of mode 2 of `B`: thin QR of the transposed
    matrices. So in mode 1 the kernel is the matrix `U S1 V1^T` of orthonormal `U` and `V1`, where
    `V1^T` is mode 1 of `A x2 V`; in mode 2 likewise. Needs `p <= q k` and `q <= p k`.
    """
    return _unit_rows(core), _unit_rows(core.transpose(0, 1)).transpose(0, 1)


def _unit_rows(X: Tensor) -> Tensor:
    return orthonormalise(first_mode(X).mT).mT.unflatten(1, X.shape[1:])


def check_ranks(ranks: tuple[int, int], shape: tuple[int, ...]) -> None:
    """ValueError unless a kernel of that shape (out, in, kh, kw) can have these ranks."""
    (p, q), (out_channels, in_channels, *kernel) = ranks, shape
    places = torch.Size(kernel).numel()
    if not (1 <= p <= out_channels and 1 <= q <= in_channels):
        raise ValueError(
            f"`ranks` must be from 1 up to the channels, ({out_channels}, {in_channels}), got "
            f"{ranks}"
        )
    if p > q * places or q > p * places:
        raise ValueError(
            f"`ranks` must not differ by more than the factor kh * kw = {places}, got {ranks}: a "
            "core has no more independent rows than columns"
        )


def check_tucker(f: Tucker) -> Tucker:
    """`f` itself if its shapes fit together and its entries are finite, else `ValueError`."""
    U, core, V = f
    if not all(t.is_floating_point() for t in f) or (U.ndim, core.ndim, V.ndim) != (2, 4, 2):
        named = zip(Tucker._fields, f, strict=True)
        got = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in named)
        raise ValueError(f"factors must be floating-point, U and V matrices, core 4-dim, got {got}")
    if (U.shape[1], V.shape[1]) != f.ranks:
        raise ValueError(
            f"factors must be U (out, p), core (p, q, kh, kw), V (in, q); got U {tuple(U.shape)}, "
            f"core {tuple(core.shape)}, V {tuple(V.shape)}"
        )
    check_ranks(f.ranks, (*f.shape, *core.shape[2:]))
    if not all(bool(t.isfinite().all()) for t in f):
        raise ValueError("factors must be finite, got NaN or infinite entries")
    return f


def hosvd(W: Tensor, ranks: tuple[int, int], *, sweeps: int = 1) -> Tucker:
    """A Tucker kernel of these ranks near a dense `W` (out, in, kh, kw).

    Sequentially truncated HOSVD (Vannieuwenhoven, Vandebril and Meerbergen, 2012), whose error is
    at most the root of the sum of both modes' squared tails, i.e. `sqrt(2)` times the least
    possible; then `sweeps` of HOOI (De Lathauwer, De Moor and Vandewalle, 2000), each of which
    makes it smaller or leaves it.
    """
    check_ranks(ranks, tuple(W.shape))
    p, q = ranks
    U = leading(first_mode(W), p)
    V = leading(second_mode(times_first(W, U.mT)), q)
    for _ in range(sweeps):
        U = leading(first_mode(times_second(W, V.mT)), p)
        V = leading(second_mode(times_first(W, U.mT)), q)
    return Tucker(U, times_second(times_first(W, U.mT), V.mT).contiguous(), V)


def left_singular(X: Tensor) -> tuple[Tensor, Tensor]:
    """`P` (m, s) and `sigma` (s,) of the thin SVD of `X` (m, n), s = min(m, n).

    By `X^T = Q R` and the SVD of `R^T`, several times as fast for the wide modes of a kernel.
    """
    R = torch.linalg.qr(X.mT, mode="r")[1]
    P, sigma, _ = svd(R.mT)
    return P, sigma


def leading(X: Tensor, rank: int) -> Tensor:
    """The left singular vectors (m, rank) of the largest singular values of `X` (m, n)."""
    return left_singular(X)[0][:, :rank].contiguous()


def variance_preserving_tucker(
    out_channels: int,
    in_channels: int,
    kernel_size: tuple[int, int],
    ranks: tuple[int, int],
    *,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    like: Tensor,
) -> Tucker:
    """A random Tucker kernel with the variance of a dense start, for training from scratch.

    For patches `x` of `n = in kh kw` independent entries, `E (W x)_i^2 = gain^2 E ||x||^2 / n` on
    the mean over the channels `i`. All singular values of mode 1 are `gain * sqrt(out / p)`.
    """
    check_ranks(ranks, (out_channels, in_channels, *kernel_size))
    p, q = ranks

    def basis(rows: int, columns: int) -> Tensor:
        X = torch.randn(rows, columns, generator=generator, dtype=like.dtype, device="cpu")
        return orthonormalise(X).to(like.device)

    U, V = basis(out_channels, p), basis(in_channels, q)
    rows = basis(q * kernel_size[0] * kernel_size[1], p).mT
    core = rows.unflatten(1, (q, *kernel_size)) * (gain * (out_channels / p) ** 0.5)
    return Tucker(U, core.contiguous(), V)
