"""Upper bounds of the l2 Lipschitz constant of a network in evaluation mode."""

import torch
from torch import Tensor, nn

from rankwise.robust.reachable import as_ball
from rankwise.robust.refine import refined
from rankwise.robust.walk import Network, Walk
from rankwise.surgery.watch import evaluating

ROUNDS = 30


def product_bound(model: nn.Module, x: Tensor) -> float:
    """The product of the layers' norms, batch norms multiplied into the layers before them.

    The arguments and errors are those of `lipschitz_bound`.
    """
    with evaluating(model):
        return Walk(Network(model, x), relax=as_ball).whole().radius


def lipschitz_bound(model: nn.Module, x: Tensor, *, rounds: int = ROUNDS) -> float:
    """`L` with `||model(a) - model(b)|| <= L ||a - b||` for all inputs of the shape of `x`.

    Layers on images contribute their norms; from the first linear map of vectors on, ellipsoids
    tell which directions the layers share (`rankwise.robust.reachable`). Norms of low-rank layers
    come from their factors. Never more than `product_bound`, exact for a single linear map.

    Args:
        model: an `nn.Sequential`, nested if need be, of the layers in `rankwise.robust.LAYERS`;
            batch norms and dropout count as in `model.eval()`. Hooks that change outputs are not
            seen.
        x: (rows, ...) as the model takes it. Only the shape of a row matters.
        rounds: of the descent over the multipliers, >= 0; 0 is the closed form.

    Raises:
        ValueError: for a layer without a known bound or with weights that are not finite, named.
    """
    return refined(Network(model, x), rounds, lambda C: torch.linalg.matrix_norm(C, 2)).radius
