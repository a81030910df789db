"""Plain layers seen as matrices: what each multiplies, and what it becomes in low rank."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.nn.base import is_transposed, own_class
from rankwise.nn.conv import LowRankConv2d, patches, places
from rankwise.nn.conv1d import LowRankConv1d
from rankwise.nn.embedding import LowRankEmbedding
from rankwise.nn.function import rows_of
from rankwise.nn.geometry import Geometry
from rankwise.nn.linear import LowRankLinear
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd, variance_preserving


class DenseMap(ABC):
    """A layer whose weight is one matrix `W` (m, n) that a product `U S V^T` can stand for."""

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def obstacle(self) -> str:
        """Why this layer cannot be low rank, or ""."""
        return ""

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that holds `W`."""
        weight: nn.Parameter = self.module.weight
        return weight

    @property
    def matrix(self) -> Tensor:
        """`W` (m, n), detached, sharing memory with the weight."""
        return self.weight.detach().flatten(1)

    @torch.no_grad()
    def set_matrix_(self, W: Tensor) -> None:
        """Write `W` (m, n) into the weight."""
        self.weight.copy_(W.reshape(self.weight.shape))

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.matrix.shape
        return m, n

    @property
    def width(self) -> int:
        """Length of a vector that the layer puts out."""
        return self.shape[0]

    @property
    def products(self) -> int:
        """Multiplications in one place."""
        m, n = self.shape
        return m * n

    def thin_numel(self, rank: int) -> int:
        """Numbers in the form that runs at that rank."""
        return rank * sum(self.shape)

    def thin_products(self, rank: int) -> int:
        """Multiplications of that form in one place."""
        return self.thin_numel(rank)

    def truncated(self, rank: int) -> Any:
        """Factors of that rank near `W`."""
        return truncated_svd(self.matrix, rank)

    def random(self, rank: int, gain: float, draw: torch.Generator) -> Any:
        """Random factors of the Frobenius norm `gain sqrt(m)`."""
        like = self.matrix.new_empty(0)
        return variance_preserving(*self.shape, rank, gain=gain, generator=draw, like=like)

    @abstractmethod
    def low_rank(self, factors: Any) -> LowRankModule:
        """The layer with these factors in place of `W`, all else the same."""


class RowMap(DenseMap):
    """One whose `W` multiplies rows and becomes `U S V^T`, as a calibration needs."""

    def items(self, t: Tensor) -> Tensor:
        """An input or output with its items (images, sequences, rows) along the first axis."""
        return t

    @abstractmethod
    def gradient_rows(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """`X` (rows, n) and `D` (rows, m) with the gradient `D^T X` of `W`."""


REGISTRY: dict[type[nn.Module], type[DenseMap]] = {}


def register(kind: type[nn.Module]) -> Callable[[type[DenseMap]], type[DenseMap]]:
    """Class decorator: layers of exactly this type are seen by that `DenseMap`."""

    def enter(seen_by: type[DenseMap]) -> type[DenseMap]:
        REGISTRY[kind] = seen_by
        return seen_by

    return enter


def dense_map(module: nn.Module) -> DenseMap | None:
    """How `module` is a matrix; None for a layer that rankwise does not know as one."""
    if is_transposed(module):
        return TransposedLinearMap(module)
    seen_by = REGISTRY.get(own_class(module))
    return None if seen_by is None else seen_by(module)


@register(nn.Linear)
class LinearMap(RowMap):
    """`nn.Linear`."""

    def gradient_rows(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        return rows_of(x), rows_of(dy)

    def low_rank(self, factors: Factors) -> LowRankModule:
        return LowRankLinear(factors, bias=self.module.bias)


class TransposedLinearMap(LinearMap):
    """Hugging Face's `Conv1D`, a linear map with its weight stored as (in, out)."""

    @property
    def matrix(self) -> Tensor:
        return self.weight.detach().mT

    @torch.no_grad()
    def set_matrix_(self, W: Tensor) -> None:
        self.weight.copy_(W.mT)


class ConvolutionMap(DenseMap):
    """A convolution of one group that pads with zeros."""

    @property
    def obstacle(self) -> str:
        c = self.module
        if c.groups > 1:
            kind = "depthwise" if c.groups == c.in_channels else f"of {c.groups} groups"
            return f"{kind}: its kernel is no single matrix"
        if c.padding_mode != "zeros":
            return f"padding_mode={c.padding_mode!r}: low-rank convolutions pad with zeros"
        if c.padding == "same" and any(left != right for left, right in self._same_padding()):
            return "padding='same' is one-sided at this kernel size"
        return ""

    def _same_padding(self) -> list[tuple[int, int]]:
        reach = zip(self.module.kernel_size, self.module.dilation, strict=True)
        totals = [dilation * (size - 1) for size, dilation in reach]
        return [(total // 2, total - total // 2) for total in totals]

    def moves(self) -> dict[str, tuple[int, ...]]:
        """Kernel size, stride, padding (as numbers) and dilation."""
        c = self.module
        padding = c.padding
        if isinstance(padding, str):
            same = tuple(left for left, _ in self._same_padding())
            padding = same if padding == "same" else (0,) * len(same)
        names = ("kernel_size", "stride", "padding", "dilation")
        return dict(zip(names, (c.kernel_size, c.stride, padding, c.dilation), strict=True))


@register(nn.Conv2d)
class Conv2dMap(ConvolutionMap, RowMap):
    """`nn.Conv2d`, its kernel as the matrix (out, in * kh * kw)."""

    def items(self, t: Tensor) -> Tensor:
        return t if t.ndim == 4 else t[None]

    def gradient_rows(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        return patches(x, Geometry(**self.moves())), places(dy)  # type: ignore[arg-type]

    def low_rank(self, factors: Factors) -> LowRankModule:
        return LowRankConv2d(factors, bias=self.module.bias, **self.moves())  # type: ignore[arg-type]


@register(nn.Conv1d)
class Conv1dMap(ConvolutionMap, RowMap):
    """`nn.Conv1d`, its kernel as the matrix (out, in * k)."""

    def items(self, t: Tensor) -> Tensor:
        return t if t.ndim == 3 else t[None]

    def gradient_rows(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        flat = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
        wide = {name: (flat[name], *move) for name, move in self.moves().items()}
        geometry = Geometry(**wide)  # type: ignore[arg-type]
        return patches(x.unsqueeze(-2), geometry), places(dy.unsqueeze(-2))

    def low_rank(self, factors: Factors) -> LowRankModule:
        moves = {name: move[0] for name, move in self.moves().items()}
        return LowRankConv1d(factors, bias=self.module.bias, **moves)  # type: ignore[arg-type]


@register(nn.Embedding)
class EmbeddingMap(DenseMap):
    """`nn.Embedding`: `W` (entries, width) as an output layer with tied weights has it."""

    @property
    def obstacle(self) -> str:
        for name in ("max_norm", "scale_grad_by_freq", "sparse"):
            value = getattr(self.module, name)
            if value:
                return f"{name}={value}: not for a table in factors"
        return ""

    @property
    def width(self) -> int:
        return self.shape[1]

    @property
    def products(self) -> int:
        """None: rows of `W` are looked up."""
        return 0

    def thin_products(self, rank: int) -> int:
        return rank * self.shape[1]

    def low_rank(self, factors: Factors) -> LowRankModule:
        return LowRankEmbedding(factors, padding_idx=self.module.padding_idx)
