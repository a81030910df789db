"""Plain LoRA from factors: `A = V^T` (r, in), `B = scale * U S` (out, r), `Delta W = B A`."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankwise.nn.base import is_transposed
from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.retract import truncate
from rankwise.surgery.layers import low_rank_layers


class LoraPair(NamedTuple):
    """One exported layer."""

    name: str
    """In the exported model, i.e. without the prefix."""
    A: Tensor
    B: Tensor
    rank_before: int
    error: float
    """`||cut part||_F / ||Delta W||_F`; 0 unless `max_rank` was below the rank."""
    transposed: bool
    """Whether the base stores its weight as (in, out)."""

    @property
    def rank(self) -> int:
        return self.A.shape[0]


def lora_pairs(model: nn.Module, *, max_rank: int | None, prefix: str) -> list[LoraPair]:
    """The layers of `model` whose core is not zero, as pairs of exact rank."""
    layers = low_rank_layers(model)
    if not layers:
        raise ValueError("the model has no low-rank layer to export; `adapt_(model)` makes them")
    matrices = {name: _exportable(name, layer) for name, layer in layers.items()}
    return [
        _pair(_stripped(name, prefix), layer, max_rank)
        for name, layer in matrices.items()
        if bool(layer.S.detach().count_nonzero())
    ]


def padded(pair: LoraPair, rank: int) -> LoraPair:
    """The same product, with zero rows in `A` and zero columns in `B` up to `rank`."""
    missing = rank - pair.rank
    pad = torch.nn.functional.pad
    return pair._replace(A=pad(pair.A, (0, 0, 0, missing)), B=pad(pair.B, (0, missing)))


@torch.no_grad()
def _pair(name: str, layer: Factored, max_rank: int | None) -> LoraPair:
    f, error = layer.factors(), 0.0
    if max_rank is not None and max_rank < f.rank:
        sigma = torch.linalg.svdvals(f.S.double())
        error = float(sigma[max_rank:].norm() / sigma.norm())
        f = truncate(f, max_rank)
    assert layer.base is not None
    B = (f.U @ f.S * layer.scale).contiguous()
    return LoraPair(name, f.V.mT.contiguous(), B, layer.rank, error, is_transposed(layer.base))


def _exportable(name: str, layer: LowRankModule) -> Factored:
    if layer.base is None or not isinstance(layer, Factored):
        raise ValueError(f"layer {name!r} has no frozen weight that LoRA could be added to")
    return layer


def _stripped(name: str, prefix: str) -> str:
    if not prefix:
        return name
    if not name.startswith(f"{prefix}."):
        raise ValueError(
            f"layer {name!r} is not inside the part of the model that `prefix` names, {prefix!r}"
        )
    return name.removeprefix(f"{prefix}.")
