"""The Mixup attack: features are drawn towards those of a mixture of other classes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankwise.robust.arguments import check_count, check_number
from rankwise.robust.attack import Attack
from rankwise.robust.ball import Ball, Linf, per_row, positive
from rankwise.robust.objective import cross_entropy
from rankwise.robust.region import Region
from rankwise.robust.slope import slope

Features = Callable[[nn.Module, Tensor], Tensor]


def logits_as_features(model: nn.Module, x: Tensor) -> Tensor:
    """The logits (rows, classes)."""
    return model(x)


@dataclass(frozen=True)
class MixupAttack(Attack):
    """Sign ascent with momentum on `weight sum_k CE(f(x' / 2^k), y) - KL(p(x_mix) || p(x'))`.

    The type of attack of Xu and Ghamisi, "Universal adversarial examples in remote sensing:
    methodology and benchmark" (2022), that RobustDLRT (arXiv 2505.08022) is measured with; momentum
    is that of Dong et al., "Boosting adversarial attacks with momentum" (2018):
    `m <- momentum m + g / ||g||_1`, then a step of `eps / steps` along `sign(m)`.

    Ours: `p` is the softmax of `features`, where the published code compares features as they are;
    `x_mix` is for each sample the mean of the images of other labels in its batch, theirs is one
    stored mixture for a data set; the divergence is taken at `x'`, theirs at all of its scales too;
    the step is a sign's, theirs `m / ||m||_inf`. So its numbers compare models with each other, not
    with published tables. A sample's result depends on its batch, through `x_mix`.

    Args:
        steps: gradients, >= 1.
        momentum: share of the last direction that is kept, >= 0.
        weight: of the cross-entropies beside the divergence, >= 0.
        halvings: the k of the sum, each >= 0. The published code takes 0 to 4.
        features: `(model, x) -> (rows, d)`; by default the logits.

    `perturb` raises ValueError for a batch of one label only: it has nothing to mix.
    """

    steps: int = 5
    momentum: float = 1.0
    weight: float = 1e-3
    halvings: tuple[int, ...] = (1, 2, 3, 4, 5)
    features: Features = logits_as_features
    ball: Ball = field(default=Linf(), init=False, repr=False)

    def __post_init__(self) -> None:
        check_count("MixupAttack", "steps", self.steps)
        check_number("MixupAttack", "momentum", self.momentum, above=0.0, inclusive=True)
        check_number("MixupAttack", "weight", self.weight, above=0.0, inclusive=True)
        for k in self.halvings:
            check_number("MixupAttack", "halvings", k, above=0, inclusive=True)

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        target = self._log_probabilities(model, mean_of_others(region.x, y))

        def value(point: Tensor) -> Tensor:
            reached = self._log_probabilities(model, point)
            distance = (target.exp() * (target - reached)).sum(1)
            entropies = (cross_entropy(model(point / 2**k), y) for k in self.halvings)
            return self.weight * sum(entropies) - distance

        x, m = region.x, torch.zeros_like(region.x)
        for _ in range(self.steps):
            g = slope(value, x)
            m = self.momentum * m + g / positive(per_row(g.flatten(1).abs().sum(1), g))
            step = region.eps / self.steps * self.ball.steepest(m)
            x = region.at(x - region.x + step)
        return x

    def _log_probabilities(self, model: nn.Module, x: Tensor) -> Tensor:
        found = self.features(model, x)
        if found.ndim != 2 or len(found) != len(x):
            raise ValueError(
                f"`MixupAttack(features=...)` must return ({len(x)}, d), got {tuple(found.shape)}"
            )
        return functional.log_softmax(found, dim=1)


def mean_of_others(x: Tensor, y: Tensor) -> Tensor:
    """For each row the mean of the rows of `x` with another label, (rows, ...).

    Raises ValueError if all labels are one.
    """
    other = y[:, None] != y[None, :]
    if not bool(other.any()):
        raise ValueError(
            f"`y` has the one label {int(y[0])}; the Mixup attack mixes images of other labels, so "
            "that a batch needs two at least: shuffle, or take larger batches"
        )
    weights = other.to(x.dtype)
    return ((weights / weights.sum(1, keepdim=True)) @ x.flatten(1)).view_as(x)
