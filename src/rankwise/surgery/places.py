"""In how many places an example meets each matrix of a model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.surgery.layers import replace_
from rankwise.surgery.sites import Found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; afterwards each module is in the mode that it was in."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def count_places(model: nn.Module, found: Found, example: Any) -> dict[str, int]:
    """Vectors that each layer puts out in one forward pass on `example`, by its name."""
    counts: dict[str, int] = {}
    packed = {name: model.get_submodule(name) for name in found.attentions}
    hooks = []
    for site in found.sites:
        if site.map is not None:
            counts[site.name] = 0
            width = site.map.shape[1 if site.map.looked_up else 0]
            hooks.append(site.module.register_forward_hook(_counter(counts, site.name, width)))
    try:
        # Its twin computes the same and has layers that can be watched.
        replace_(model, dict(found.attentions))
        with evaluating(model):
            call(model, example)
    finally:
        replace_(model, packed)
        for hook in hooks:
            hook.remove()
    return counts


def _counter(counts: dict[str, int], name: str, width: int) -> Callable[..., None]:
    def count(module: nn.Module, inputs: Any, y: Tensor) -> None:
        counts[name] += y.numel() // width

    return count


def call(model: nn.Module, example: Any) -> Any:
    """The model of a tensor, of a tuple of arguments or a mapping of named ones."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)
