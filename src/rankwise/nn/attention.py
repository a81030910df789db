"""Multi-head attention whose projections are layers of their own, so that each can be low rank."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rankwise.nn.plain import linear


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` with four linear layers in place of packed weights.

    The same function of the same arguments; `query`, `key`, `value` are projected by the layers
    `q_proj`, `k_proj`, `v_proj`, and the result by `out_proj`.

    Args:
        packed: the module whose weights it takes over; not one with `bias_k`, `bias_v` or
            `add_zero_attn`.
    """

    # `nn.TransformerEncoderLayer` looks for these before it reads packed weights in its fast path;
    # without a packed bias it calls the module instead.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = packed.embed_dim, packed.num_heads
        self.dropout, self.batch_first = packed.dropout, packed.batch_first
        biases = [None] * 3 if packed.in_proj_bias is None else packed.in_proj_bias.chunk(3)
        weights = [W.detach().clone() for W in projection_weights(packed)]
        self.q_proj, self.k_proj, self.v_proj = map(linear, weights, biases)
        self.out_proj = linear(packed.out_proj.weight.detach().clone(), packed.out_proj.bias)
        for layer, W in zip(
            (self.q_proj, self.k_proj, self.v_proj), projection_weights(packed), strict=True
        ):
            layer.weight.requires_grad_(W.requires_grad)
        self.out_proj.weight.requires_grad_(packed.out_proj.weight.requires_grad)
        self.train(packed.training)

    def packed(self) -> nn.MultiheadAttention | None:
        """Torch's own module that computes the same; None where a projection is not plain."""
        projections = [self.q_proj, self.k_proj, self.v_proj]
        if any(type(p) is not nn.Linear for p in (*projections, self.out_proj)):
            return None
        q, k, v = (
            nn.Parameter(p.weight.detach(), requires_grad=p.weight.requires_grad)
            for p in projections
        )
        new = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            bias=self.q_proj.bias is not None,
            kdim=k.shape[1],
            vdim=v.shape[1],
            batch_first=self.batch_first,
            device="meta",
        )
        if new._parameters["in_proj_weight"] is None:
            new.q_proj_weight, new.k_proj_weight, new.v_proj_weight = q, k, v
        else:
            trains = any(p.requires_grad for p in (q, k, v))
            new.in_proj_weight = nn.Parameter(torch.cat([q, k, v]).detach(), requires_grad=trains)
        if self.q_proj.bias is not None:
            trains = any(p.bias.requires_grad for p in projections)
            biases = torch.cat([p.bias for p in projections]).detach()
            new.in_proj_bias = nn.Parameter(biases, requires_grad=trains)
        new.out_proj.weight, new.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        return new.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: the output, and weights if they are needed."""
        if is_causal and attn_mask is None:
            raise ValueError("`is_causal=True` needs `attn_mask`, as in nn.MultiheadAttention")
        alone = query.ndim == 2
        if alone:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            self._heads(project(t))
            for project, t in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        bias = self._bias(q, k, key_padding_mask, attn_mask)
        if need_weights:
            y, weights = self._attend_openly(q, k, v, bias)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            share = self.dropout if self.training else 0.0
            y, weights = scaled_dot_product_attention(q, k, v, bias, dropout_p=share), None
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if alone:
            return y[0], None if weights is None else weights[0]
        return y if self.batch_first else y.transpose(0, 1), weights

    def _heads(self, t: Tensor) -> Tensor:
        """(batch, places, width) to (batch, heads, places, width / heads)."""
        return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend_openly(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        weights = (scores if bias is None else scores + bias).softmax(-1)
        weights = nn.functional.dropout(weights, self.dropout, self.training)
        return weights @ v, weights

    def _bias(
        self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores (batch, heads or 1, places of q or 1, places of k)."""
        bias = None
        if padding is not None:
            bias = _added(padding, q)[:, None, None, :]
        if mask is not None:
            heads = _added(mask, q)
            if heads.ndim == 3:
                heads = heads.unflatten(0, (-1, self.num_heads))
            bias = heads if bias is None else bias + heads
        return bias

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"


def projection_weights(packed: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    """The three logical matrices of queries, keys and values, (embed_dim, width of each)."""
    together: Tensor | None = packed._parameters["in_proj_weight"]
    if together is not None:
        return together.chunk(3)
    separate: Any = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
    return tuple(separate)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as a summand: -inf where a boolean one says that nothing may be seen."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)
