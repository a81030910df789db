"""Finding the thin layers that `shrink` leaves in place of one, and what they stand for."""

from typing import Any, NamedTuple

import torch
from torch import nn

from rankwise.surgery.places import call
from rankwise.surgery.watch import evaluating


class ThinLayers(NamedTuple):
    """Plain layers in an `nn.Sequential` that stand for one: `W = B A`, or a Tucker kernel."""

    name: str
    kind: str
    """Type of all together: Linear, Conv1d, Conv2d, Embedding."""
    shape: tuple[int, int]
    """(m, n) of `W`; a kernel of a convolution is a row."""
    rank: str
    """Inner width, or both of a Tucker kernel, output side first."""
    weights: int
    """`m n`; 0 if the weight is that of an earlier layer."""
    kept: int
    """Numbers in the thin layers, without those that an earlier layer holds."""
    products: int
    """Multiplications in one place of the output."""


def thin_layers(model: nn.Module) -> list[ThinLayers]:
    """All of a model, in its order, each module once.

    They are known by their form: two linear layers with nothing between them, and a rank that saves
    something. One that the user has written is one too.
    """
    counted: set[int] = set()
    found = []
    for name, module in model.named_modules():
        kind = _kind(module)
        if not kind:
            continue
        parts: list[Any] = list(module.children())
        m, n = _shape(kind, parts)
        held = {id(part.weight): part.weight.numel() for part in parts}
        if sum(held.values()) >= m * n:
            continue
        new = {key: count for key, count in held.items() if key not in counted}
        counted.update(new)
        widths = [part.weight.shape[1] for part in reversed(parts[1:])]
        found.append(
            ThinLayers(
                name=name,
                kind=kind,
                shape=(m, n),
                rank=", ".join(map(str, widths)),
                weights=m * n if len(new) == len(held) else 0,
                kept=sum(new.values()),
                products=_products(kind, parts),
            )
        )
    return found


def count_products(model: nn.Module, thin: list[ThinLayers], example: Any) -> tuple[int, int]:
    """Multiplications in an example by the weights that thin layers stand for, and by those."""
    places = dict.fromkeys((layers.name for layers in thin), 0)
    hooks = []
    for name in places:
        last: Any = list(model.get_submodule(name).children())[-1]

        def count(_: nn.Module, inputs: Any, y: Any, name: str = name, layer: Any = last) -> None:
            places[name] += y.numel() // layer.weight.shape[0]

        hooks.append(last.register_forward_hook(count))
    try:
        with evaluating(model), torch.no_grad():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    # A lookup in a whole table multiplies nothing.
    whole = [0 if t.kind == "Embedding" else t.shape[0] * t.shape[1] for t in thin]
    before = sum(places[t.name] * products for t, products in zip(thin, whole, strict=True))
    return before, sum(places[t.name] * t.products for t in thin)


def _kind(module: nn.Module) -> str:
    if type(module) is not nn.Sequential or len(module) not in (2, 3):
        return ""
    first, *_, last = parts = list(module.children())
    if any(getattr(part, "bias", None) is not None for part in parts[:-1]):
        return ""
    if len(parts) == 2 and type(last) is nn.Linear and type(first) in (nn.Linear, nn.Embedding):
        return type(first).__name__
    if {type(part) for part in parts} in ({nn.Conv1d}, {nn.Conv2d}) and _is_pointwise(last):
        grouped = any(part.groups != 1 for part in parts)
        if not grouped and (len(parts) == 2 or _is_pointwise(first)):
            return type(first).__name__
    return ""


def _is_pointwise(convolution: Any) -> bool:
    sizes = {*convolution.kernel_size, *convolution.stride, *convolution.dilation}
    return sizes == {1} and not any(convolution.padding)


def _shape(kind: str, parts: list[Any]) -> tuple[int, int]:
    first, last = parts[0].weight, parts[-1].weight
    if kind == "Embedding":
        return len(first), len(last)
    places = 1 if len(parts) == 2 else parts[1].weight[0, 0].numel()
    return len(last), first[0].numel() * places


def _products(kind: str, parts: list[Any]) -> int:
    counts = [part.weight.numel() for part in parts]
    if kind == "Embedding":
        return int(counts[1])
    if len(parts) == 3:
        # The first map meets every place of the input, of which a stride leaves a part.
        for step in parts[1].stride:
            counts[0] *= step
    return int(sum(counts))
