"""Attacks of one gradient."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_ball
from rankwise.robust.attack import Attack
from rankwise.robust.ball import Ball, Linf, per_row, positive
from rankwise.robust.objective import cross_entropy
from rankwise.robust.region import Region
from rankwise.robust.slope import slope


@dataclass(frozen=True)
class FGSM(Attack):
    """`x' = x + eps sign(g)`, `g` the gradient of the summed cross-entropies: one step, to the end.

    After Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples" (2015).
    It is the weakest of the attacks here, and the cheapest. In RobustDLRT's tables (Schotthöfer,
    Yang and Schnake, arXiv 2505.08022) it is the l1-FGSM, on normalised images with `eps` divided
    by the deviation.

    Args:
        ball: `Linf()`, or `L2()` for `x + eps g / ||g||`.
    """

    ball: Ball = Linf()

    def __post_init__(self) -> None:
        check_ball("FGSM", self.ball)

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        g = loss_gradient(model, region.x, y)
        return region.at(region.eps * self.ball.steepest(g))


@dataclass(frozen=True)
class ScaledFGSM(Attack):
    """`x' = x + clip(eps g / ||g||_inf, -eps, eps)`: only the steepest entry moves by all of `eps`.

    The "l2-FGSM" of RobustDLRT (Schotthöfer, Yang and Schnake, arXiv 2505.08022), weaker than the
    sign attack of the same `eps`, so that its budgets look larger. The published code divides by
    the largest entry of a whole batch; here it is each sample's own, so that a result does not
    depend on who else is in the batch.
    """

    ball: Ball = field(default=Linf(), init=False, repr=False)

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        g = loss_gradient(model, region.x, y)
        return region.at(region.eps * (g / positive(per_row(self.ball.size(g), g))))


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the cross-entropy of each row with respect to that row, (rows, ...)."""
    return slope(lambda point: cross_entropy(model(point), y), x)
