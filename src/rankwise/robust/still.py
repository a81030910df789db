"""Holding a model still while it is looked at from outside."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from rankwise.surgery.watch import evaluating


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Within, `model` evaluates and no parameter takes a gradient.

    Afterwards each module is in the mode and each parameter has the `requires_grad` that it had, on
    an exception too.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    with evaluating(model):
        try:
            for p in trained:
                p.requires_grad_(False)
            yield
        finally:
            for p in trained:
                p.requires_grad_(True)
