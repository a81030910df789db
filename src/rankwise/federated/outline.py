"""What of a model is trained together: names and shapes, without ranks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankwise.federated.message import Arrays
from rankwise.io.state import dense_trained
from rankwise.io.stored import join
from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import LowRankModule, low_rank_layers
from rankwise.nn.statistics import running_statistics


class Weight(NamedTuple):
    """A low-rank matrix of m rows and n columns, and the type of its factors."""

    m: int
    n: int
    dtype: torch.dtype

    def like(self, *shape: int) -> Tensor:
        """A tensor of that shape without content."""
        return torch.empty(shape, dtype=self.dtype, device="meta")


class Outline(NamedTuple):
    """Names of the low-rank layers, the dense parameters and the running statistics of a model.

    Tensors here have shapes and types, but no content.
    """

    layers: dict[str, Weight]
    dense: Arrays
    statistics: Arrays

    def opening(self, ranks: dict[str, int]) -> Arrays:
        """What the first request of a round holds at those ranks."""
        arrays = dict(self.dense) | self.statistics
        for name, W in self.layers.items():
            r = ranks[name]
            arrays[join(name, "U")] = W.like(W.m, r)
            arrays[join(name, "S")] = W.like(r, r)
            arrays[join(name, "V")] = W.like(W.n, r)
        return arrays


def outline_of(model: nn.Module) -> Outline:
    """What trains in `model`.

    Raises:
        ValueError: for Tucker kernels, merged layers, batch norms without momentum, and where
            nothing trains.
    """
    layers = {n: _factored(n, layer) for n, layer in low_rank_layers(model).items()}
    trained = {n: layer for n, layer in layers.items() if layer.S.requires_grad}
    dense = {n: p.detach().to("meta") for n, p in dense_trained(model).items()}
    if not trained and not dense:
        raise ValueError("nothing in `model` trains: every parameter is frozen")
    return Outline(
        {n: Weight(*layer.shape, layer.S.dtype) for n, layer in trained.items()},
        dense,
        {n: b.detach().to("meta") for n, b in statistics_of(model).items()},
    )


def state_of(model: nn.Module) -> Arrays:
    """Copies on the CPU of all that `outline_of` names; ValueError where one has no values."""
    outline, tensors = outline_of(model), named_tensors(model)
    names = outline.opening(dict.fromkeys(outline.layers, 0))
    empty = next((n for n in names if tensors[n].is_meta), None)
    if empty is not None:
        raise ValueError(f"{empty!r} is on the meta device: load the weights of `model` first")
    return {n: tensors[n].detach().cpu().contiguous().clone() for n in names}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Factors, other parameters and running statistics by their names in messages."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return tensors | statistics_of(model)


def statistics_of(model: nn.Module) -> Arrays:
    """Running means and variances; the counts of batches are no numbers to average."""
    found = running_statistics(model)
    for name, module in model.named_modules():
        if getattr(module, "momentum", 0.1) is None and join(name, "running_mean") in found:
            raise ValueError(
                f"layer {name!r} has `momentum=None`, a mean over all batches so far, which has no "
                "meaning across clients: give it a momentum such as 0.1"
            )
    return {n: b for n, b in found.items() if b.is_floating_point()}


def _factored(name: str, layer: object) -> Factored:
    if not isinstance(layer, Factored):
        raise ValueError(
            f"layer {name!r} is a {type(layer).__name__}: federated training is made for matrices. "
            "Factorize convolutions as matrices, by `convolution=rankwise.LowRankConv2d`"
        )
    check_not_merged(name, layer)
    return layer


def check_not_merged(name: str, layer: LowRankModule) -> None:
    if layer.merged:
        raise ValueError(f"layer {name!r} is merged; call `unmerge_(model)` before")
