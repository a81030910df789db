"""What training asks of a low-rank weight, whatever its kind: three contracts.

A weight is a `Point` of its manifold, a gradient or momentum a `TangentVector` at a point, the end
of a step a `Displaced`, exact and not yet cut. Matrices (`Factors`, `Tangent`, `Spectrum`) and
Tucker kernels (`Tucker`, `TuckerTangent`, `TuckerSpectrum`) fulfil them. The points, tangent
vectors and ends that one call brings together are always of one kind.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

P = TypeVar("P", bound="Point")
T = TypeVar("T", bound="TangentVector")


class Mode(NamedTuple):
    """One of the ranks that a point has."""

    rank: int
    shape: tuple[int, int]
    """Of the matrix that has this rank; the rank is at most the smaller of the two."""
    cost: float
    """Numbers that one direction holds: over all modes `sum(rank * cost)` is the whole point."""


class Point(Protocol):
    """A low-rank weight: a core between orthonormal bases `U` (out, .) and `V` (in, .)."""

    @property
    def U(self) -> Tensor: ...

    @property
    def V(self) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, int]:
        """(rows of `U`, rows of `V`)."""
        ...

    @property
    def places(self) -> tuple[int, ...]:
        """What the core has beyond its ranks: (kh, kw) of a kernel, nothing of a matrix."""
        ...

    def checked(self: P) -> P:
        """The point itself if its factors fit together and are finite, else `ValueError`."""
        ...

    def modes(self) -> list[Mode]: ...

    def norm(self) -> Tensor:
        """`||W||_F`, a 0-dim tensor."""
        ...

    def scaled(self: P, factor: float) -> P:
        """`factor * W` in the same bases."""
        ...

    def distance(self: P, other: P) -> Tensor:
        """`||W - W'||_F`, a 0-dim tensor; the ranks may differ."""
        ...


class TangentVector(Protocol):
    """A tangent vector at a point, by coordinates of the shapes of `U`, `V` and the core.

    `K` and `L` are what the vector does to the two bases, with what lies inside of them; `C` is
    the part inside of both. `K`, `L`, `C` of a gradient are the slots of one backward pass.
    """

    @property
    def K(self) -> Tensor: ...

    @property
    def L(self) -> Tensor: ...

    @property
    def C(self) -> Tensor: ...

    def like(self: T, K: Tensor, L: Tensor, C: Tensor) -> T:
        """The tangent vector at the same point that has these coordinates."""
        ...

    def squares(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared lengths of the rows of `K` (out,), of `L` (in,), and `||xi||^2` by them."""
        ...

    def squared_norm(self) -> Tensor:
        """`||xi||_F^2`, never negative by rounding."""
        ...

    def along(self, at: Any) -> Tensor:
        """`<xi, W>` for the point `W` at which it is tangent."""
        ...

    def inner_product(self, at: Any, W: Any) -> Tensor:
        """`<xi, W>` for any point `W`."""
        ...

    def scaled_sides(self: T, at: Any, row: Tensor, column: Tensor) -> T:
        """The projection of `diag(row) xi diag(column)`; (out,) and (in,)."""
        ...

    def transport(self: T, old: Any, new: Any) -> T:
        """The projection onto the tangent space at `new` of a vector tangent at `old`."""
        ...

    def displaced(self, at: Any, take: Callable[[Tensor], Tensor]) -> "Displaced":
        """`W - take(xi)` in bases that hold it exactly; `take` sees the core of `xi` there."""
        ...


class Displaced(Protocol):
    """The end of a step before a rank is chosen."""

    def spectra(self) -> list[Tensor]:
        """Singular values of each mode, descending."""
        ...

    def cut_to(self, ranks: Sequence[int], shaped: Callable[[Tensor], Tensor] = ...) -> Any:
        """The point nearby that has these ranks, one of each mode.

        In place of its descending singular values (of the first mode) it gets `shaped` of them.
        """
        ...
