"""The Jitter attack, for models whose softmax saturates."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_count, check_number
from rankwise.robust.attack import Attack
from rankwise.robust.ball import Ball, Linf, positive
from rankwise.robust.objective import jitter, right
from rankwise.robust.region import Region
from rankwise.robust.slope import slope


@dataclass(frozen=True)
class Jitter(Attack):
    """Sign ascent on the distance of noisy, rescaled probabilities from the label; l_inf.

    After Schwinn et al., "Exploring misclassifications of robust neural networks to enhance
    adversarial attacks" (2021): see `rankwise.robust.objective.jitter`. Once a sample is
    misclassified its objective is divided by `||x' - x||_inf`, which makes the perturbation
    smaller. As in RobustDLRT (arXiv 2505.08022) the start is `x` and the last point is taken; steps
    of `2.5 eps / steps` along the sign are ours.

    Args:
        steps: gradients, >= 1.
        scale: of the logits, whose largest is made 1 before, > 0.
        noise: deviation of the normal noise on the probabilities, >= 0.
        step: size of one step, in the unit of eps, > 0; None for `2.5 eps / steps`.
    """

    steps: int = 5
    scale: float = 10.0
    noise: float = 0.1
    step: float | None = None
    ball: Ball = field(default=Linf(), init=False, repr=False)

    def __post_init__(self) -> None:
        check_count("Jitter", "steps", self.steps)
        check_number("Jitter", "scale", self.scale, above=0.0, inclusive=False)
        check_number("Jitter", "noise", self.noise, above=0.0, inclusive=True)
        if self.step is not None:
            check_number("Jitter", "step", self.step, above=0.0, inclusive=False)

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        def value(point: Tensor) -> Tensor:
            logits = model(point)
            eta = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
            values = jitter(logits, y, self.noise * eta.to(logits.device), self.scale)
            size = positive(self.ball.size(point - region.x))
            return torch.where(right(logits, y), values, values / size)

        length = 2.5 * region.eps / self.steps if self.step is None else self.step
        x = region.x
        for _ in range(self.steps):
            g = slope(value, x)
            x = region.at(x - region.x + length * self.ball.steepest(g))
        return x
