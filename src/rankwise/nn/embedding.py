"""The embedding of low rank: a table `U S V^T` of which only rows of `U` are looked up."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from rankwise.nn.factored import Factored, adapter_repr
from rankwise.nn.function import check_rank_kept, rows_of, shaped
from rankwise.nn.plain import linear
from rankwise.numerics.factors import Factors


class LowRankEmbedding(Factored):
    """`y = W[index]`, where `W` (entries, width) is `U S V^T`, or `y = base(index) + scale * ...`.

    The factors are those of a linear map with the same weight, so that an output layer tied to the
    embedding shares them.

    Args:
        factors: `U` (entries, r), `S` (r, r), `V` (width, r).
        padding_idx: an entry whose places give no gradient. Its row is one of `U S V^T` all the
            same, and moves with the bases.
        base: an embedding of the same shape; it is frozen. None: the factors are the table.
        scale: factor of the low-rank part, finite and not 0, fixed for good.
    """

    def __init__(
        self,
        factors: Factors,
        *,
        padding_idx: int | None = None,
        base: nn.Module | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(factors, base=base, scale=scale)
        self.padding_idx = padding_idx

    @property
    def num_embeddings(self) -> int:
        return self.U.shape[0]

    @property
    def embedding_dim(self) -> int:
        return self.V.shape[0]

    def gradient_rows(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        return self.output_rows(dy), self.input_rows(x)

    def input_rows(self, x: Tensor) -> Tensor:
        """One-hot rows (places, entries): what the transposed weight multiplies."""
        index = x.flatten()
        one_hot = nn.functional.one_hot(index, self.num_embeddings).to(self.U.dtype)
        return one_hot * _counted(index, self.padding_idx, self.U.dtype)

    def output_rows(self, y: Tensor) -> Tensor:
        return rows_of(y)

    def forward(self, index: Tensor) -> Tensor:
        if index.is_floating_point():
            raise TypeError(f"an embedding takes integer indices, got {index.dtype}")
        if self.merged:
            assert self.base is not None
            whole: Tensor = self.base(index)
            return whole
        y: Tensor = LowRankLookup.apply(index, self.U, self.S, self.V, self.padding_idx)[0]
        y = y if self.scale == 1.0 else self.scale * y
        if self.base is None:
            return y
        frozen: Tensor = self.base(index)
        return frozen + y.to(frozen.dtype)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        told = f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}{padding}"
        return told + adapter_repr(self)

    def dense_layer(self) -> nn.Embedding:
        self.check_whole()
        new = nn.Embedding.from_pretrained(
            self.scale * self.factors().dense(), freeze=False, padding_idx=self.padding_idx
        )
        return new.train(self.training)

    def thin_layers(self) -> nn.Sequential:
        self.check_whole()
        B, A = self.factors().scaled(self.scale).balanced()
        table = nn.Embedding.from_pretrained(B, freeze=False, padding_idx=self.padding_idx)
        return nn.Sequential(table, linear(A.mT, None)).train(self.training)


class LowRankLookup(Function):
    """`index` (...), `U` (m, r), `S` (r, r), `V` (n, r) to `(U S V^T)[index]` (..., n).

    The slots of `U`, `V`, `S` get `dK = G V`, `dL = G^T U`, `dS = U^T G V`, where row i of `G`
    (m, n) is the sum of the output gradients of the places that hold i.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        index: Tensor, U: Tensor, S: Tensor, V: Tensor, padding: int | None
    ) -> tuple[Tensor, Tensor]:
        rows = U[index.flatten()]
        y = rows @ S @ V.mT
        return shaped(y, index.shape), rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        index, U, S, V, ctx.padding = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(index, output[1], U, S, V)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        index, rows, U, S, V = ctx.saved_tensors
        check_rank_kept(rows.shape[1], S.shape[0])
        dy, index = rows_of(dy).to(U.dtype), index.flatten()
        rows = rows * _counted(index, ctx.padding, rows.dtype)
        h = (dy @ V) * _counted(index, ctx.padding, rows.dtype)
        # Between fixed bases the core need not be square, and the slots of the bases do not fit.
        needs, dK, dL = ctx.needs_input_grad, None, None
        if needs[1]:
            dK = torch.zeros_like(U).index_add_(0, index, h)
        if needs[3]:
            dL = dy.mT @ rows
        return None, dK, rows.mT @ h, dL, None


def _counted(index: Tensor, padding: int | None, dtype: torch.dtype) -> Tensor:
    """1 for places whose gradient counts, 0 for padding; (places, 1)."""
    if padding is None:
        return torch.ones((), dtype=dtype, device=index.device)
    return (index != padding).to(dtype)[:, None]
