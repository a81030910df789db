"""In how many places an example meets each matrix of a model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.surgery.sites import Found
from rankwise.surgery.watch import watchable


@torch.no_grad()
def count_places(model: nn.Module, found: Found, example: Any) -> dict[str, int]:
    """Vectors that each layer puts out in one forward pass on `example`, by its name."""
    counts: dict[str, int] = {}
    hooks = []
    for site in found.sites:
        if site.map is not None:
            counts[site.name] = 0
            counter = _counter(counts, site.name, site.map.width)
            hooks.append(site.module.register_forward_hook(counter))
    try:
        with watchable(model, found):
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _counter(counts: dict[str, int], name: str, width: int) -> Callable[..., None]:
    def count(module: nn.Module, inputs: Any, y: Tensor) -> None:
        counts[name] += y.numel() // width

    return count


def call(model: nn.Module, example: Any) -> Any:
    """The model of a tensor, of a tuple of arguments or a mapping of named ones.

    ValueError, naming the example, where the model does not take it.
    """
    try:
        if isinstance(example, Mapping):
            return model(**example)
        return model(*example) if isinstance(example, tuple) else model(example)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"the model does not take the `example`, {told(example)}: {error}"
        ) from error


def told(example: Any) -> str:
    """The arguments that an example is, tensors by type and shape."""
    if isinstance(example, Mapping):
        return ", ".join(f"{name}={told(value)}" for name, value in example.items())
    if isinstance(example, tuple):
        return ", ".join(map(told, example))
    if isinstance(example, Tensor):
        return f"{str(example.dtype).removeprefix('torch.')} {tuple(example.shape)}"
    return type(example).__name__
