"""What a model consists of, which of its layers can be adapted, and how to swap one."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from rankwise.nn.base import is_linear, linear_shape
from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import LowRankModule, low_rank_layers

READ_BY_PARENT: dict[type[nn.Module], frozenset[str]] = {
    nn.MultiheadAttention: frozenset({"out_proj"}),
    nn.TransformerEncoderLayer: frozenset({"linear1", "linear2"}),
}
"""Layers that their parent does not call: it reads their weight, so that a replacement has no
effect or breaks it. (`TransformerEncoderLayer` does so in evaluation, in its fast path.)"""


class Layer(NamedTuple):
    """A module that owns parameters, once for each object, with all names it goes by."""

    names: tuple[str, ...]
    module: nn.Module
    parent: nn.Module

    @property
    def name(self) -> str:
        return self.names[0]


def parametric_layers(model: nn.Module) -> list[Layer]:
    """Every module with parameters of its own, linear maps as one, in the model's order."""
    found: dict[int, Layer] = {}
    for name, module, parent in _walk("", model, model):
        if id(module) in found:
            layer = found[id(module)]
            found[id(module)] = layer._replace(names=(*layer.names, name))
        elif isinstance(module, LowRankModule) or is_linear(module) or module._parameters:
            found[id(module)] = Layer((name,), module, parent)
    return list(found.values())


def factored_layers(model: nn.Module) -> dict[str, Factored]:
    """Those of them whose weight is a matrix."""
    return {n: m for n, m in low_rank_layers(model).items() if isinstance(m, Factored)}


def obstacle(layer: Layer) -> str:
    """Why a layer cannot be adapted, or ""."""
    module = layer.module
    if isinstance(module, LowRankModule):
        return f"already low rank ({' x '.join(map(str, module.ranks))})"
    if not is_linear(module):
        return f"{type(module).__name__} is not a linear map that rankwise adapts"
    for parent, children in READ_BY_PARENT.items():
        if isinstance(layer.parent, parent) and layer.name.rpartition(".")[2] in children:
            return f"{parent.__name__} reads its weight and does not call it"
    if min(linear_shape(module)) == 0:
        return "is empty"
    return ""


def replace_(model: nn.Module, names: Mapping[str, nn.Module]) -> None:
    """Put another module in the place of each name."""
    for name, module in names.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def _walk(
    name: str, module: nn.Module, parent: nn.Module
) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    yield name, module, parent
    # A linear map made of parts (another library's adapter, a parametrisation) is one layer.
    if not isinstance(module, LowRankModule) and not is_linear(module):
        for child, inner in module._modules.items():
            if inner is not None:
                yield from _walk(f"{name}.{child}" if name else child, inner, module)
