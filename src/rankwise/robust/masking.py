"""Signs that a model looks robust only because its gradients lead nowhere."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_ball, check_batch, check_count, check_eps, check_inside
from rankwise.robust.attack import Attack
from rankwise.robust.ball import Ball, Linf
from rankwise.robust.evaluate import classified, moved
from rankwise.robust.fgsm import FGSM
from rankwise.robust.noise import Noise
from rankwise.robust.pgd import PGD, IteratedFGSM
from rankwise.robust.region import Bounds

# Shares of the samples: what luck may do to a difference, and what is as good as none.
SLACK = 0.02
NONE_LEFT = 0.05
DRAWS = 10


def masking_signs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    ball: Ball | None = None,
    bounds: Bounds = (0.0, 1.0),
    rows: int = 200,
    seed: int = 0,
) -> list[str]:
    """Which of three rules for models with useful gradients are broken, as sentences; warned of.

    After Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security" (2018):
    many small steps do not do worse than one large (`IteratedFGSM`, which keeps no best point,
    against `FGSM`); an attack without a limit succeeds; ten random perturbations do not find more
    than the gradient. If one is broken, accuracies under gradient attacks say little: attack with
    `AutoAttack`, whose `square` needs none. That none is broken proves nothing.

    Args:
        model: as in `Attack.perturb`, on one device, to which inputs are moved.
        x: inputs (rows, ...), of which the first `rows` are used.
        y: labels (rows,).
        eps: the budget of interest, > 0.
        ball: the geometry of interest; None for `Linf()`.
        bounds: as in `Attack.perturb`; without any, the limit is the range of `x`.
        rows: number of samples, >= 1; differences of 2 % of them are put down to luck.
        seed: of the random perturbations.
    """
    ball = Linf() if ball is None else ball
    check_ball("masking_signs", ball)
    check_batch(model, x, y)
    check_inside(x, None)
    check_count("masking_signs", "rows", rows)
    if check_eps(eps) == 0.0:
        raise ValueError(f"`eps` must be > 0, got {eps}; a budget of 0 attacks nothing")
    x, y = moved(model, x[:rows]), moved(model, y[:rows])
    draw = torch.Generator().manual_seed(seed)

    def survivors(attack: Attack, budget: float) -> Tensor:
        found = attack.perturb(model, x, y, budget, bounds=bounds, generator=draw)
        return classified(model, found, y)

    def share(left: Tensor) -> float:
        return left.double().mean().item()

    once, often = share(survivors(FGSM(ball), eps)), share(survivors(IteratedFGSM(ball), eps))
    best = share(survivors(PGD(ball), eps))
    limit = reach(x, ball, bounds)
    unlimited = share(survivors(PGD(ball), limit))
    chance = torch.ones_like(y, dtype=torch.bool)
    for _ in range(DRAWS):
        chance &= survivors(Noise(ball), eps)
    signs = list(_broken(eps, once, often, best, limit, unlimited, share(chance)))
    if signs:
        warnings.warn(
            "the model seems to mask its gradients, so that gradient attacks overrate it: "
            + " ".join(signs),
            UserWarning,
            stacklevel=2,
        )
    return signs


def reach(x: Tensor, ball: Ball, bounds: Bounds) -> float:
    """A radius of `ball` within which every input lies, or all of `x` where there are no bounds."""
    low, high = bounds if bounds is not None else (float(x.min()), float(x.max()))
    return float(ball.size(torch.full_like(x[:1], high - low)))


def _broken(
    eps: float,
    once: float,
    often: float,
    best: float,
    limit: float,
    unlimited: float,
    chance: float,
) -> Iterator[str]:
    if often > once + SLACK:
        yield (
            f"At eps {eps:g} many small steps leave {often:.1%} of the samples classified right, "
            f"one large step only {once:.1%}."
        )
    if unlimited > NONE_LEFT:
        yield (
            f"At eps {limit:g}, where any input may become any other, the attack still leaves "
            f"{unlimited:.1%} classified right."
        )
    if chance < best - SLACK:
        yield (
            f"At eps {eps:g} random noise ({DRAWS} draws) leaves {chance:.1%} classified right, "
            f"the gradient's attack {best:.1%}."
        )
