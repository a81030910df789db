"""What an integrator is: it asks for displacements at points and returns where the step ends.

A step of length `h` from `W = U S V^T` needs the gradient at one or more points. An integrator is
a generator: it yields a point as `Factors`, is sent the displacement there, `h P(W) G` in the
coordinates `h (G V, G^T U, U^T G V)` of that point, and returns the end of the step, not yet cut.
So the same lines serve a matrix differential equation, a single layer, and a whole network in
which all layers go from point to point together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import ClassVar

from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Spectrum, whole
from rankwise.numerics.tangent import Tangent

Stages = Generator[Factors, Tangent, Spectrum]


class Integrator(ABC):
    """One step on the manifold; immutable, without state."""

    same_matrix: ClassVar[bool]
    """Whether all its points are the same matrix `W`, written in larger bases. Then one backward
    pass is enough: its inputs and output gradients give the displacement at every point."""

    needs_matrices: ClassVar[bool] = True
    """Whether it looks into the factors of a matrix, and has no meaning for a tensor."""

    points: ClassVar[int]
    """At how many points it asks for a displacement."""

    widening: ClassVar[int | None] = None
    """How many times their width the bases have at the end of a step, before they are cut, where it
    takes stacked matrices as well as a single one; None where it does not."""

    moves_bases: ClassVar[bool] = True
    """Whether it asks for more of a displacement than its core."""

    @abstractmethod
    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        """The step from `f`; in place of the displacement's core it takes `take(core)`.

        Where all points are the same matrix, the step is nothing but that core in larger bases, so
        that `take` may scale and reshape it.
        """

    def at(self, step: int) -> "Integrator":
        """The integrator of step number `step` = 1, 2, ..."""
        return self


def step(
    integrator: Integrator,
    f: Factors,
    displacement: Callable[[Factors], Tangent],
    take: Callable[[Tensor], Tensor] = whole,
) -> Spectrum:
    """One step with `displacement(point)`, e.g. `project(point, h * gradient(point.dense()))`."""
    if not isinstance(integrator, Integrator):
        raise TypeError(
            "`integrator` must be one of `rankwise.integrators`, such as `BUG()`, got "
            f"{integrator!r}"
        )
    stages = integrator.stages(f, take)
    point = next(stages)
    while True:
        try:
            point = stages.send(displacement(point))
        except StopIteration as end:
            spectrum: Spectrum = end.value
            return spectrum
