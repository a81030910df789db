"""The product `y = x (W0 + scale * U S V^T)^T` and its three projected gradients.

The backward puts `dK = G V`, `dL = G^T U`, `dS = U^T G V` into the gradient slots of `U`, `V`, `S`,
where `G` is the gradient with respect to `U S V^T`. These are the coordinates of the tangent
gradient; no inverse of `S` occurs and none vanishes at `S = 0`. They are *not* the gradients of
the factors (`dU = dK S^T`): a stock optimizer on these slots would not descend,
`rankwise.Optimizer` does.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class LowRankProduct(Function):
    """`x` (..., n), `U` (m, r), `S` (r, r), `V` (n, r), frozen `W0` (m, n) and `b` (m,) or None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        U: Tensor,
        S: Tensor,
        V: Tensor,
        W0: Tensor | None,
        b: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        a = x @ V
        low_rank = (a @ S.mT) @ U.mT
        if W0 is None:
            y = low_rank * scale if b is None else low_rank * scale + b
        else:
            y = torch.nn.functional.linear(x, W0, b).add_(low_rank, alpha=scale)
        return y, a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, U, S, V, W0, _, scale = inputs
        _, a = output
        ctx.mark_non_differentiable(a)
        ctx.save_for_backward(x, a, U, S, V, W0)
        ctx.scale = scale

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, a, U, S, V, W0 = ctx.saved_tensors
        if S.shape[0] != a.shape[-1]:
            # A resize is no write that torch counts; it would take the new factors for the old.
            raise RuntimeError(
                f"the rank changed from {a.shape[-1]} to {S.shape[0]} between the forward pass and "
                "this backward pass. Call `backward()` before `optimizer.step()`."
            )
        scale, needs = ctx.scale, ctx.needs_input_grad
        h = dy @ U * scale
        dx = dK = dS = dL = db = None
        if needs[0]:
            dx = (h @ S) @ V.mT
            if W0 is not None:
                dx = dx + dy @ W0
        if needs[1]:
            dK = _rows(dy).mT @ _rows(a) * scale
        if needs[2]:
            dS = _rows(h).mT @ _rows(a)
        if needs[3]:
            dL = _rows(x).mT @ _rows(h)
        if needs[5]:
            db = _rows(dy).sum(0)
        return dx, dK, dS, dL, None, db, None


def low_rank_product(
    x: Tensor,
    U: Tensor,
    S: Tensor,
    V: Tensor,
    W0: Tensor | None = None,
    b: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> Tensor:
    """`x @ (W0 + scale * U S V^T).T + b`; differentiable in `x`, the factors (as above) and `b`.

    Everything is computed in the autocast type, or else in that of `x` (so float32 factors serve a
    bfloat16 base); the gradients come back in the type of what they belong to.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    U, S, V = U.to(dtype), S.to(dtype), V.to(dtype)
    if not autocast:
        return _apply(x, U, S, V, W0, b, scale)
    W0, b = (t if t is None else t.to(dtype) for t in (W0, b))
    with torch.autocast(device, enabled=False):
        return _apply(x.to(dtype), U, S, V, W0, b, scale)


def _rows(t: Tensor) -> Tensor:
    """All vectors of a batch as the rows of one matrix."""
    return t.flatten(0, -2) if t.ndim > 1 else t[None]


def _apply(*inputs: Tensor | float | None) -> Tensor:
    y: Tensor = LowRankProduct.apply(*inputs)[0]
    return y
