"""What an attack makes as large as it can: one number a sample, of logits and labels."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Objective = Callable[[Tensor, Tensor], Tensor]
"""`(logits, y) -> values` for logits (rows, classes) and labels (rows,); values (rows,)."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """`-log softmax(logits)[y]` of each row, (rows,)."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit less the own one, (rows,); positive where a row is misclassified.

    It does not saturate as the cross-entropy does for a confident model (Carlini and Wagner,
    "Towards evaluating the robustness of neural networks", 2017).
    """
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.amax(1) - own(logits, y)


def jitter(logits: Tensor, y: Tensor, noise: Tensor, scale: float) -> Tensor:
    """`||softmax(scale z / ||z||_inf) + noise - onehot(y)||^2` of each row `z`, (rows,).

    The scaled logits saturate no softmax, and the noise (rows, classes) varies the direction
    (Schwinn et al., "Exploring misclassifications of robust neural networks to enhance adversarial
    attacks", 2021).
    """
    largest = logits.abs().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    probabilities = torch.softmax(scale * logits / largest, dim=1)
    target = functional.one_hot(y, logits.shape[1])
    return (probabilities + noise - target).square().sum(1)


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Which rows are classified as labelled, bool (rows,); none of those with NaN among logits."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def own(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)
