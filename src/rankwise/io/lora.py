"""Plain LoRA from factors: `A = V^T` (r, in), `B = scale * U S` (out, r), `Delta W = B A`."""

from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.io.stored import Stored, StoredLayer
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import truncate


class LoraPair(NamedTuple):
    """One exported layer."""

    name: str
    """In the exported model, i.e. without the prefix."""
    A: Tensor
    """(r, in); (r, entries) of an embedding, (r, in kh kw) of a convolution."""
    B: Tensor
    """(out, r); (width, r) of an embedding."""
    rank_before: int
    error: float
    """`||cut part||_F / ||Delta W||_F`; 0 unless `max_rank` was below the rank."""
    layer: StoredLayer

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """As PEFT names and shapes them."""
        if self.layer.map == "embedding":
            sides = {"lora_embedding_A": self.A, "lora_embedding_B": self.B}
        else:
            sides = {"lora_A.weight": self._kernel(self.A), "lora_B.weight": self._point(self.B)}
        return {f"base_model.model.{self.name}.{key}": t for key, t in sides.items()}

    def _kernel(self, A: Tensor) -> Tensor:
        """The rows of `A` as the kernels of a convolution, if it is one."""
        size = self._size()
        return A.reshape(len(A), -1, *size) if size else A

    def _point(self, B: Tensor) -> Tensor:
        return B.reshape(*B.shape, *[1] * len(self._size()))

    def _size(self) -> tuple[int, ...]:
        kernel = self.layer.kernel_size
        return () if kernel is None else kernel[-1:] if self.layer.map == "conv1d" else kernel


def lora_pairs(state: Stored, *, max_rank: int | None, prefix: str) -> list[LoraPair]:
    """The layers of `state` whose core is not zero, as pairs of exact rank."""
    if not state.layers:
        raise ValueError("the model has no low-rank layer to export; `adapt_(model)` makes them")
    for name, layer in state.layers.items():
        _check_exportable(name, layer)
    return [
        _pair(_stripped(name, prefix), layer, max_rank)
        for name, layer in state.layers.items()
        if not is_zero(layer)
    ]


def is_zero(layer: StoredLayer) -> bool:
    return isinstance(layer.factors, Factors) and not bool(layer.factors.S.count_nonzero())


def padded(pair: LoraPair, rank: int) -> LoraPair:
    """The same product, with zero rows in `A` and zero columns in `B` up to `rank`."""
    missing = rank - pair.rank
    pad = torch.nn.functional.pad
    return pair._replace(A=pad(pair.A, (0, 0, 0, missing)), B=pad(pair.B, (0, missing)))


@torch.no_grad()
def _pair(name: str, layer: StoredLayer, max_rank: int | None) -> LoraPair:
    f, error = layer.factors, 0.0
    assert isinstance(f, Factors)
    rank = f.rank
    if max_rank is not None and max_rank < rank:
        sigma = torch.linalg.svdvals(f.S.double())
        error = float(sigma[max_rank:].norm() / sigma.norm())
        f = truncate(f, max_rank)
    A, B = f.V.mT.contiguous(), (f.U @ f.S * layer.scale).contiguous()
    if layer.map == "embedding":
        # PEFT's product is the transpose of the table.
        A, B = f.U.mT.contiguous(), (f.V @ f.S.mT * layer.scale).contiguous()
    return LoraPair(name, A, B, rank, error, layer)


def _check_exportable(name: str, layer: StoredLayer) -> None:
    if not layer.has_base or not isinstance(layer.factors, Factors):
        raise ValueError(f"layer {name!r} has no frozen weight that LoRA could be added to")


def _stripped(name: str, prefix: str) -> str:
    if not prefix:
        return name
    if not name.startswith(f"{prefix}."):
        raise ValueError(
            f"layer {name!r} is not inside the part of the model that `prefix` names, {prefix!r}"
        )
    return name.removeprefix(f"{prefix}.")
