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
from rankwise.numerics.retract import Spectrum
from rankwise.numerics.tangent import Tangent

Stages = Generator[Factors, Tangent, Spectrum]


def unchanged(core: Tensor) -> Tensor:
    return core


class Integrator(ABC):
    """One step of an integrator; immutable, without state."""

    same_matrix: ClassVar[bool]
    """Whether all its points are the same matrix `W`, written in larger bases. Then one backward
    pass is enough: its inputs and output gradients give the displacement at every point."""

    @abstractmethod
    def stages(self, f: Factors, reshape: Callable[[Tensor], Tensor] = unchanged) -> Stages:
        """The step from `f`; `reshape` changes the core of the displacement before it is taken."""


def step(
    integrator: Integrator, f: Factors, displacement: Callable[[Factors], Tangent]
) -> Spectrum:
    """One step with `displacement(point)`, e.g. `project(point, h * gradient(point.dense()))`."""
    stages = integrator.stages(f)
    point = next(stages)
    while True:
        try:
            point = stages.send(displacement(point))
        except StopIteration as end:
            spectrum: Spectrum = end.value
            return spectrum
