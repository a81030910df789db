"""Losses whose gradients are the Fisher information of a model, at its own predictions.

A model that fits its data has no gradient left there; what it would lose is told by labels drawn
from its own distribution, and then no labels are needed at all.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def sampled_cross_entropy(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mean cross-entropy of `logits` (..., classes) with classes drawn from their softmax."""
    rows = logits.flatten(0, -2).float()
    labels = torch.multinomial(rows.detach().softmax(-1), 1, generator=generator).flatten()
    return cross_entropy(rows, labels)


def sampled_square_error(prediction: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Half the mean square error of a regression, with targets of unit noise around it."""
    noise = torch.randn(prediction.shape, generator=generator, dtype=prediction.dtype)
    target = prediction.detach() + noise.to(prediction.device)
    return (prediction - target).square().mean() / 2
