"""Looking at a model at work without changing it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from rankwise.surgery.layers import replace_
from rankwise.surgery.sites import Found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, `model` evaluates; afterwards each module is in the mode that it was in."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def watchable(model: nn.Module, found: Found) -> Iterator[None]:
    """Within, `model` evaluates, and every site of `found` is a module that is called.

    A packed attention stands back for its split twin, which computes the same.
    """
    packed = {name: model.get_submodule(name) for name in found.attentions}
    # Nested tensors are for the packed ones' fast path alone.
    encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
    nested = {encoder: encoder.use_nested_tensor for encoder in encoders}
    try:
        for encoder in nested:
            encoder.use_nested_tensor = False
        replace_(model, dict(found.attentions))
        with evaluating(model):
            yield
    finally:
        replace_(model, packed)
        for encoder, value in nested.items():
            encoder.use_nested_tensor = value
