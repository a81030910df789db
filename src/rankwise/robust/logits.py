"""Reading a classifier: its logits, and whether labels are of its classes."""

from typing import Any

import torch
from torch import Tensor, nn


def class_count(model: nn.Module, x: Tensor) -> int:
    """Number of classes, from one row of `x`; TypeError or ValueError for what is no classifier."""
    with torch.no_grad():
        logits: Any = model(x[:1])
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"`model` must return logits as a tensor, got {type(logits).__name__}; wrap it in a "
            "module that returns them"
        )
    if logits.ndim != 2 or len(logits) != 1 or not logits.is_floating_point():
        raise ValueError(
            "`model` must return floating logits (rows, classes), got "
            f"{logits.dtype} of shape {tuple(logits.shape)} for one row"
        )
    if logits.shape[1] < 2:
        raise ValueError("`model` has one class only; a classifier of one output has no other")
    return logits.shape[1]


def check_labels(y: Tensor, classes: int) -> None:
    """ValueError unless all labels are in [0, classes)."""
    low, high = (int(t) for t in y.aminmax())
    if not 0 <= low <= high < classes:
        raise ValueError(
            f"`y` has labels from {low} to {high}, the model has classes 0 to {classes - 1}"
        )
