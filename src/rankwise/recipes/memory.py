"""Bytes that a model and an optimizer hold."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from rankwise.io.tree import flatten
from rankwise.optim.layers import NamedLayer


def model_bytes(model: nn.Module) -> int:
    """All weights, what is tied once, and what quantised ones need beside (scales, tables)."""
    return _bytes(value for value in model.state_dict().values() if isinstance(value, Tensor))


def adapter_bytes(layers: Iterable[NamedLayer]) -> int:
    """The factors."""
    return _bytes(p for _, layer in layers for p in layer.factor_parameters())


def optimizer_bytes(optimizer: Optimizer) -> int:
    """The state, such as moments."""
    tensors: list[Tensor] = []
    flatten(optimizer.state_dict()["state"], tensors, "state")
    return _bytes(tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    sizes: dict[Any, int] = {}
    for tensor in tensors:
        for part in _parts(tensor):
            sizes[part.data_ptr(), part.numel()] = part.numel() * part.element_size()
    return sum(sizes.values())


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor of another library's type is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))
