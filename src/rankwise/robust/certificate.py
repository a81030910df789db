"""Certified radii: how far an image can be changed before a classifier's answer may change."""

import copy
import math

import torch
from torch import Tensor, nn

from rankwise.robust.lipschitz import ROUNDS
from rankwise.robust.reachable import SAFETY, Reachable, Sphere
from rankwise.robust.refine import refined
from rankwise.robust.walk import Network

ROWS = 256


def certified_radius(model: nn.Module, x: Tensor, y: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """The l2 radius around each sample within which the model provably answers `y`.

    The margin `f_y - f_j` changes by at most `L_yj` per unit, so that the answer is `y` at every
    distance less than `min_j (f_y - f_j) / L_yj` (Tsuzuku, Sato and Sugiyama, 2018, with
    `sqrt(2) L` for all pairs). Here `L_yj^2 = (e_y - e_j)^T Y (e_y - e_j)` of the last ellipsoid,
    which is exact for a linear classifier.

    The answer is that of exact arithmetic: margins are taken in float64 on a copy. In float32 a
    logit is off by some 1e-6 of its size, which can decide where the margin is as small.

    Args:
        model: as for `lipschitz_bound`, with outputs (rows, classes); it evaluates.
        x: samples (rows, ...); the radius is in their unit.
        y: the right classes (rows,), integers.
        rounds: as for `lipschitz_bound`, for the mean of `L_yj^2` over all pairs.

    Returns:
        (rows,) in float64 on the device of `x`, 0 where the answer is wrong; beyond 1e50 if
        the outputs are constant.

    Raises:
        ValueError: as for `lipschitz_bound`; for labels that do not fit, or outputs that are not
            (rows, classes) or not finite.
    """
    network = Network(model, x)
    if len(network.output) != 2 or network.output[1] < 2:
        raise ValueError(
            f"`model` must return (rows, classes) with two classes or more, got "
            f"{tuple(network.output)} for one row"
        )
    classes = network.output[1]
    _check_labels(y, len(x), classes)
    bounds = _pair_bounds(refined(network, rounds, _mean_square_of_pairs), classes).to(x.device)
    twin = copy.deepcopy(model).double().eval()
    # Under autocast layers would round to 8 bits.
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        logits = torch.cat([twin(rows.double()) for rows in x.split(ROWS)])
    if not bool(logits.isfinite().all()):
        raise ValueError("`model` returns NaN or infinite outputs for some of `x`")
    own = y.to(x.device)[:, None].long()
    margins = logits.gather(1, own) - logits - SAFETY * logits.abs().amax(1, keepdim=True)
    radii = torch.where(margins > 0.0, margins / bounds[own[:, 0]], 0.0)
    return radii.scatter(1, own, math.inf).amin(1)


def certified_accuracy(radii: Tensor, eps: float) -> float:
    """The share of samples whose answer is right for every change of l2 norm up to `eps`.

    Args:
        radii: (rows,) of `certified_radius`.
        eps: >= 0, in the same unit; `enclosing_radius(eps, x)` for changes of each number up to
            `eps`.
    """
    if not eps >= 0.0:
        raise ValueError(f"`eps` must be at least 0, got {eps}")
    return float((radii > eps).double().mean())


def enclosing_radius(eps: float, x: Tensor) -> float:
    """`eps sqrt(n)`: the l2 ball around a sample of `x` (rows, ...) that holds the l_inf one."""
    return eps * math.sqrt(x[0].numel()) * (1.0 + SAFETY)


def _mean_square_of_pairs(C: Tensor) -> Tensor:
    """The mean of `||c_y - c_j||^2` over pairs of rows, up to a factor."""
    return (C - C.mean(0)).square().sum()


def _pair_bounds(reachable: Reachable, classes: int) -> Tensor:
    """`L_yj` (classes, classes) of the difference of two outputs."""
    if isinstance(reachable, Sphere):
        return torch.full(
            (classes, classes), math.sqrt(2.0) * reachable.radius, dtype=torch.float64
        )
    C = reachable.root()
    distances = torch.cdist(C, C, compute_mode="donot_use_mm_for_euclid_dist")
    return (1.0 + SAFETY) * distances + 1e-12 * C.norm()


def _check_labels(y: Tensor, rows: int, classes: int) -> None:
    if y.shape != (rows,) or y.is_floating_point() or y.dtype is torch.bool:
        raise ValueError(
            f"`y` must hold one integer for each of the {rows} rows of `x`, got {tuple(y.shape)} "
            f"of {y.dtype}"
        )
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"`y` must hold classes from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}"
        )
