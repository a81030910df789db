"""Attacks of many gradients: ascent that is projected back to the ball after every step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_ball, check_count, check_number
from rankwise.robust.attack import Attack
from rankwise.robust.ball import Ball, Linf
from rankwise.robust.best import Best, judged
from rankwise.robust.fgsm import FGSM
from rankwise.robust.objective import Objective, cross_entropy
from rankwise.robust.region import Region
from rankwise.robust.slope import row_gradients


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent, the best point that it meets on its way kept for each sample.

    After Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), who
    start at random and take the last point. Here the first run starts at `x` itself, the others at
    random in the ball, and every point met is a candidate, as is that of `FGSM` in the same ball:
    misclassified ones before others, then by objective. So PGD is never weaker than FGSM, and more
    restarts or steps of the same size never make it weaker.

    Args:
        ball: `Linf()` or `L2()`.
        steps: gradients a run, >= 1.
        restarts: runs, >= 1.
        step: size of one step, in the unit of eps, > 0; None for `2.5 eps / steps`.
        objective: what is maximised, `(logits, y) -> (rows,)`; see `rankwise.robust.objective`.
    """

    ball: Ball = Linf()
    steps: int = 20
    restarts: int = 1
    step: float | None = None
    objective: Objective = cross_entropy

    def __post_init__(self) -> None:
        check_ascent("PGD", self.ball, self.steps, self.step)
        check_count("PGD", "restarts", self.restarts)

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        first = FGSM(self.ball)._perturb(model, y, region, generator)
        best = judged(model, first, y, self.objective)
        for start in self._starts(region, generator):
            for point in ascent(model, y, region, start, self.steps, self.step, self.objective):
                best = best.or_else(point)
        return best.x

    def _starts(self, region: Region, generator: torch.Generator) -> Iterator[Tensor]:
        yield region.x
        for _ in range(self.restarts - 1):
            yield region.at(self.ball.sample(region.x, region.eps, generator))


@dataclass(frozen=True)
class IteratedFGSM(Attack):
    """Gradient ascent from `x`, the last point taken, better or not.

    After Kurakin, Goodfellow and Bengio, "Adversarial examples in the physical world" (2017). `PGD`
    keeps the best point and is never weaker; this one shows whether the gradients lead anywhere.

    Args:
        ball: `Linf()` or `L2()`.
        steps: gradients, >= 1.
        step: size of one step, in the unit of eps, > 0; None for `2.5 eps / steps`.
    """

    ball: Ball = Linf()
    steps: int = 10
    step: float | None = None

    def __post_init__(self) -> None:
        check_ascent("IteratedFGSM", self.ball, self.steps, self.step)

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        *_, last = ascent(model, y, region, region.x, self.steps, self.step, cross_entropy)
        return last.x


def check_ascent(owner: str, ball: Any, steps: Any, step: Any) -> None:
    check_ball(owner, ball)
    check_count(owner, "steps", steps)
    if step is not None:
        check_number(owner, "step", step, above=0.0, inclusive=False)


def ascent(
    model: nn.Module,
    y: Tensor,
    region: Region,
    start: Tensor,
    steps: int,
    step: float | None,
    objective: Objective,
) -> Iterator[Best]:
    """The start, and the point after each of the steps, all judged."""
    length = 2.5 * region.eps / steps if step is None else step
    x = start
    for _ in range(steps):
        point = x.detach().requires_grad_()
        with torch.enable_grad():
            seen = judged(model, point, y, objective)
        yield seen.detach()
        g = row_gradients(seen.value, point)
        x = region.at(x - region.x + length * region.ball.steepest(g))
    yield judged(model, x, y, objective)
