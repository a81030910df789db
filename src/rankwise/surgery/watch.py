"""Looking at a model at work without changing it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from rankwise.surgery.layers import replace_
from rankwise.surgery.sites import Found


@contextmanager
def watchable(model: nn.Module, found: Found) -> Iterator[None]:
    """Within, `model` evaluates, and every site of `found` is a module that is called.

    A packed attention stands back for its split twin, which computes the same.
    """
    packed = {name: model.get_submodule(name) for name in found.attentions}
    training = {module: module.training for module in model.modules()}
    try:
        replace_(model, dict(found.attentions))
        model.eval()
        yield
    finally:
        replace_(model, packed)
        for module, mode in training.items():
            module.training = mode
