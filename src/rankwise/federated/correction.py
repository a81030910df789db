"""Variance correction: what keeps clients that step on different data from drifting apart.

A client steps along `g_c(w) + (mean g - g_c)(w_0)` in place of `g_c(w)`, so that at the common
start all move along the mean gradient (FedLin, Mitra et al., 2021; FeDLRT, Schotthoefer and Laiu,
2024). The corrections of all clients, weighted by their samples, add up to zero.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from rankwise.federated.fedlrt_phases import Cores, Directions, DirectionsAndCores, Train
from rankwise.federated.phase import Phase


class Correction(ABC):
    """How clients of FeDLRT are corrected; decides the phases of a round."""

    @abstractmethod
    def phases(self, directions: Directions, train: Train) -> tuple[Phase, ...]:
        """The phases of a round, from the growth of the bases to the training between them."""


@dataclass(frozen=True)
class NoCorrection(Correction):
    """Clients step along their own gradients: two phases, and different data pull apart."""

    def phases(self, directions: Directions, train: Train) -> tuple[Phase, ...]:
        return directions, train


@dataclass(frozen=True)
class SimplifiedCorrection(Correction):
    """Corrects the old block of the core, `U^T G V`, and dense parameters: two phases.

    The gradients for it are those of the first phase, `r^2` numbers a layer each way.
    """

    def phases(self, directions: Directions, train: Train) -> tuple[Phase, ...]:
        return DirectionsAndCores(directions.batches, directions.dtype), train


@dataclass(frozen=True)
class FullCorrection(Correction):
    """Corrects the whole core, in the new bases, and dense parameters: three phases.

    The middle one is a second gradient, `4 r^2` numbers a layer each way.
    """

    def phases(self, directions: Directions, train: Train) -> tuple[Phase, ...]:
        return directions, Cores(directions.batches), train
