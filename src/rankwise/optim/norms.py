"""The norm of a whole gradient, and what it is scaled by to stay below a bound."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.distributed.sharded import total_norm
from rankwise.numerics.manifold import TangentVector


def gradient_norm(tangents: Sequence[TangentVector], dense: Sequence[Tensor]) -> Tensor:
    """`sqrt(sum ||P(W) G||^2 + sum ||dense gradients||^2)`, 0-dim; 0 without any."""
    squares = [xi.squared_norm() for xi in tangents]
    if dense:
        squares.append(total_norm(dense).square().to(squares[0].device if squares else None))
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def scale_to_(gradients: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale all so that their `norm` is at most `max_norm`."""
    factor = (max_norm / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
