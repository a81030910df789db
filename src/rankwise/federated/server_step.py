"""What the server makes of the mean change of the clients' cores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.federated.phase import Rate, check_rate, rate_at
from rankwise.numerics.spectrum import spectral_power

LEAST = 1e-6
"""Part of the largest singular value below which a direction is noise."""


class ServerStep(ABC):
    """From the core of before and the mean of the clients' cores to the new one.

    All in the same bases. A step must not depend on which ones: `f(P S Q, P M Q) = P f(S, M) Q`
    for orthogonal P and Q.
    """

    @abstractmethod
    def core(self, before: Tensor, mean: Tensor, round: int) -> Tensor:
        """The new core, in the shape of both."""


@dataclass(frozen=True)
class MeanStep(ServerStep):
    """The mean, as FeDLRT has it."""

    def core(self, before: Tensor, mean: Tensor, round: int) -> Tensor:
        return mean


@dataclass(frozen=True)
class SpectralStep(ServerStep):
    """`S + lr ||S|| P Q^T / ||P Q^T||` for the mean change `P diag(sigma) Q^T` of the core S.

    The change is taken for a gradient, as by adaptive federated optimization (Reddi et al., 2021),
    and all its directions get the same length, as in Muon (Jordan et al., 2024). Clients move a
    little, each where its own data tell; directions that few of them see come forward no slower
    than those that all see. No number more is sent and nothing is kept between rounds.

    Its length does not shrink by itself: let `lr` do so. Directions below `1e-6` of the largest, or
    below the rounding of the largest singular value of the core, are noise and left out; where
    nothing else is left the core stays. A core of zeros has no length to be measured by, and
    becomes the mean.

    Args:
        lr: length of the step over the norm of the core, > 0, or a function of the number of the
            round.
    """

    lr: Rate = 0.1

    def __post_init__(self) -> None:
        check_rate("SpectralStep", self.lr)

    def core(self, before: Tensor, mean: Tensor, round: int) -> Tensor:
        size = torch.linalg.vector_norm(before)
        if not size > 0.0:
            return mean
        change = mean - before
        largest = torch.linalg.matrix_norm(change, 2)
        noise = torch.finfo(change.dtype).eps * torch.linalg.matrix_norm(before, 2)
        if not largest > noise:
            return before
        polar = spectral_power(change, 0.0, rtol=max(LEAST, float(noise / largest)))
        return before + rate_at(self.lr, round) * size / torch.linalg.vector_norm(polar) * polar
