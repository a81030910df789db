"""Random perturbations: no attack, but what every attack has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_ball
from rankwise.robust.attack import Attack
from rankwise.robust.ball import Ball, Linf
from rankwise.robust.region import Region


@dataclass(frozen=True)
class Noise(Attack):
    """A random point of the ball's surface, blind to the model: a corner in l_inf, each as likely.

    Args:
        ball: `Linf()` or `L2()`; in the latter every direction is as likely.
    """

    ball: Ball = Linf()

    def __post_init__(self) -> None:
        check_ball("Noise", self.ball)

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        inside = self.ball.sample(region.x, 1.0, generator)
        return region.at(region.eps * self.ball.steepest(inside))
