"""What an optimizer does to the singular values of a low-rank weight after each of its steps.

With orthonormal bases the spectrum of `U S V^T` is that of the small core, and the retraction has
just found it: to keep it in shape costs nothing that grows with the layer. Compression lets
condition numbers grow, and through a large one errors and attacks pass; see `rankwise.robust`.

As decoupled weight decay does, it acts beside the update rule, not through its moments: its
strength is the same for all layers and does not depend on the size of their gradients.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.numerics.condition import flattened, levelled, nearest_conditioned
from rankwise.numerics.given import check_number


class Conditioning(ABC):
    """Maps the singular values of a weight to new ones; immutable, without state."""

    lifts: ClassVar[bool] = False
    """Whether it makes a small singular value large at once, so that a layer must not gain
    directions: what is new in them is noise."""

    @abstractmethod
    def shaped(self, sigma: Tensor, rate: Tensor | float) -> Tensor:
        """The new values of descending `sigma` (r,), in the same order.

        Args:
            sigma: of the weight as it acts, its `scale` included.
            rate: of the step just taken, see `StepControl.rate`.
        """


@dataclass(frozen=True)
class SpreadPenalty(Conditioning):
    """RobustDLRT: descend on `beta R(S)`, `R` the spread of the squared singular values.

    `R(S) = ||S^T S - alpha^2 I||_F`, see `rankwise.numerics.condition.spread` (Schotthoefer, Yang
    and Schnake, NeurIPS 2025). A step of rate `h` changes `sigma_i` by
    `-2 h beta sigma_i y_i / ||y||`, `y_i = sigma_i^2 / alpha^2 - 1`: large ones shrink, small ones
    grow, in proportion to themselves, by at most `2 h beta` of it. `h` is `lr`, or `max_step` where
    that is less at the peak.

    Args:
        beta: >= 0, without a unit; 0 does nothing.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_number("SpreadPenalty(beta=...)", self.beta)
        if not 0.0 <= self.beta < float("inf"):
            raise ValueError(
                f"`SpreadPenalty(beta=...)` must be finite and not negative, got {self.beta}"
            )

    def shaped(self, sigma: Tensor, rate: Tensor | float) -> Tensor:
        return flattened(sigma, sigma.new_ones(()) * self.beta * rate)


@dataclass(frozen=True)
class ConditionLimit(Conditioning):
    """After every step, `sigma_1 <= kappa sigma_r`.

    Args:
        kappa: the largest condition number, finite and >= 1.
        project: from descending singular values and `kappa` to clipped ones. By default the
            projection, i.e. the nearest; `rankwise.robust.clipped_about_mean` is CondLR's,
            `rankwise.robust.clipped_about_root_mean_square` RobustDLRT's.
    """

    kappa: float = 2.0
    project: Callable[[Tensor, float], Tensor] = nearest_conditioned

    lifts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("ConditionLimit(kappa=...)", self.kappa)
        if not 1.0 <= self.kappa < float("inf"):
            raise ValueError(
                f"`ConditionLimit(kappa=...)` must be finite and at least 1, got {self.kappa}"
                + ("; CondLR's tau is kappa - 1" if 0.0 <= self.kappa < 1.0 else "")
            )
        if not callable(self.project):
            raise TypeError(
                "`ConditionLimit(project=...)` must be a function of singular values and `kappa`, "
                f"such as `rankwise.robust.clipped_about_mean`, got {self.project!r}"
            )

    def shaped(self, sigma: Tensor, rate: Tensor | float) -> Tensor:
        return self.project(sigma, self.kappa)


@dataclass(frozen=True)
class OrthonormalCore(Conditioning):
    """After every step all singular values are equal, with the same Frobenius norm as before.

    CondLR with `tau = 0` (Savostianova et al., NeurIPS 2023); by the polar factor of the core,
    where they take that of QR.
    """

    lifts: ClassVar[bool] = True

    def shaped(self, sigma: Tensor, rate: Tensor | float) -> Tensor:
        return levelled(sigma)


@dataclass(frozen=True)
class NormLimit(Conditioning):
    """After every step, no singular value above `norm`: `||W||_2 <= norm`.

    The nearest such weight. For a convolution it is the norm of the kernel as a matrix, which
    bounds that of the map up to a factor: `rankwise.robust.lipschitz_bound` knows the map.

    Args:
        norm: finite and > 0.
    """

    norm: float = 1.0

    def __post_init__(self) -> None:
        check_number("NormLimit(norm=...)", self.norm)
        if not (self.norm > 0.0 and math.isfinite(self.norm)):
            raise ValueError(f"`NormLimit(norm=...)` must be finite and positive, got {self.norm}")

    def shaped(self, sigma: Tensor, rate: Tensor | float) -> Tensor:
        return sigma.clamp_max(self.norm)


def shaping(
    conditioning: Conditioning, scale: float, rate: Tensor | float
) -> Callable[[Tensor], Tensor]:
    """What becomes of the singular values of `U S V^T` in a weight `scale * U S V^T`."""
    size = abs(scale)

    def shaped(sigma: Tensor) -> Tensor:
        new = conditioning.shaped(size * sigma, rate)
        if not isinstance(new, Tensor) or new.shape != sigma.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(
                f"{conditioning!r} must return singular values of the shape that it was given, "
                f"{tuple(sigma.shape)}, got {got}"
            )
        return new / size

    return shaped
