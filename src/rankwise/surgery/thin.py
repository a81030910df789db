"""Finding the pairs of thin layers that `shrink` leaves, and what they stand for."""

from typing import Any, NamedTuple

import torch
from torch import nn

from rankwise.surgery.places import call
from rankwise.surgery.watch import evaluating


class ThinPair(NamedTuple):
    """Two plain layers in an `nn.Sequential` that stand for one matrix `W = B A`."""

    name: str
    kind: str
    """Type of both together: Linear, Conv1d, Conv2d, Embedding."""
    shape: tuple[int, int]
    """(m, n) of `W`; a kernel of a convolution is a row."""
    rank: int
    weights: int
    """`m n`; 0 if the weight is that of an earlier layer."""
    kept: int
    """Numbers in both layers, without those that an earlier layer holds."""


def thin_pairs(model: nn.Module) -> list[ThinPair]:
    """All pairs of a model, in its order, each module once.

    A pair is known by its form: two linear layers with nothing between them, and a rank that saves
    something. One that the user has written is one too.
    """
    counted: set[int] = set()
    pairs = []
    for name, module in model.named_modules():
        kind = _kind(module)
        if not kind:
            continue
        first, second = (layer.weight for layer in _layers(module))
        out, rank = second.shape[:2]
        m, n = (len(first), out) if kind == "Embedding" else (out, first[0].numel())
        if rank * (m + n) >= m * n:
            continue
        new = [w for w in (first, second) if id(w) not in counted]
        counted.update(map(id, new))
        weights = m * n if len(new) == 2 else 0
        pairs.append(ThinPair(name, kind, (m, n), rank, weights, sum(w.numel() for w in new)))
    return pairs


def count_products(model: nn.Module, pairs: list[ThinPair], example: Any) -> tuple[int, int]:
    """Multiplications by the matrices of all pairs in an example, as one layer each and as two."""
    places = dict.fromkeys((pair.name for pair in pairs), 0)
    hooks = []
    for name in places:
        _, second = _layers(model.get_submodule(name))

        def count(_: nn.Module, inputs: Any, y: Any, name: str = name, layer: Any = second) -> None:
            places[name] += y.numel() // layer.weight.shape[0]

        hooks.append(second.register_forward_hook(count))
    try:
        with evaluating(model), torch.no_grad():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    before = after = 0
    for name, kind, (m, n), rank, _, _ in pairs:
        # A lookup in a whole table multiplies nothing.
        looked_up = kind == "Embedding"
        before += 0 if looked_up else places[name] * m * n
        after += places[name] * rank * (n if looked_up else m + n)
    return before, after


def _kind(module: nn.Module) -> str:
    if type(module) is not nn.Sequential or len(module) != 2:
        return ""
    first, second = _layers(module)
    if getattr(first, "bias", None) is not None:
        return ""
    if type(second) is nn.Linear and type(first) in (nn.Linear, nn.Embedding):
        return type(first).__name__
    if type(first) is type(second) and isinstance(second, nn.Conv1d | nn.Conv2d):
        if first.groups == 1 and second.weight[0, 0].numel() == 1:
            return type(first).__name__
    return ""


def _layers(pair: nn.Module) -> tuple[Any, Any]:
    first, second = pair.children()
    return first, second
