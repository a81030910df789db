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

    # Products with a thin factor are written transposed, (r, rows) with contiguous factors: BLAS is
    # up to four times as fast there as with (rows, r).
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
        rows = rows_of(x)
        Ut, S, Vt = _computing(x.dtype, U, S, V)
        at = Vt @ rows.mT
        mixed = (S @ at).mT
        if W0 is None:
            y = mixed @ Ut * scale
            y = y if b is None else y + b
        else:
            y = torch.nn.functional.linear(rows, W0, b).add_(mixed @ Ut, alpha=scale)
        return shaped(y, x.shape[:-1]), at

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, U, S, V, W0, _, scale = inputs
        _, at = output
        ctx.mark_non_differentiable(at)
        ctx.save_for_backward(x, at, U, S, V, W0)
        ctx.scale = scale

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, at, U, S, V, W0 = ctx.saved_tensors
        check_rank_kept(at.shape[0], V.shape[1])
        needs, rows = ctx.needs_input_grad, rows_of(dy)
        Ut, S, Vt = _computing(dy.dtype, U, S, V)
        ht = Ut @ rows.mT * ctx.scale
        dx = dK = dS = dL = db = None
        if needs[0]:
            dx = (S.mT @ ht).mT @ Vt
            dx = (dx if W0 is None else dx.add_(rows @ W0)).view(x.shape)
        if needs[1]:
            dK = (at @ rows).mT * ctx.scale
        if needs[2]:
            dS = ht @ at.mT
        if needs[3]:
            dL = (ht @ rows_of(x)).mT
        if needs[5]:
            db = rows.sum(0)
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
    check_floating(x)
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return _apply(x, U, S, V, W0, b, scale)
    dtype = torch.get_autocast_dtype(device)
    W0, b = (t if t is None else t.to(dtype) for t in (W0, b))
    with torch.autocast(device, enabled=False):
        return _apply(x.to(dtype), U, S, V, W0, b, scale)


def _computing(dtype: torch.dtype, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, ...]:
    """`U^T`, `S`, `V^T` as they are multiplied: in one type, with contiguous rows."""
    return U.mT.to(dtype).contiguous(), S.to(dtype), V.mT.to(dtype).contiguous()


def check_floating(x: Tensor) -> None:
    """TypeError for integers, which orthonormal factors in their type would turn into zeros."""
    if not x.is_floating_point():
        raise TypeError(f"the input must be floating point, got {x.dtype}; write `x.float()`")


def check_rank_kept(forward: int, backward: int) -> None:
    """RuntimeError if the rank is no longer that of the forward pass.

    A resize is no write that torch counts; it would take the new factors for the old.
    """
    if forward != backward:
        raise RuntimeError(
            f"the rank changed from {forward} to {backward} between the forward pass and "
            "this backward pass. Call `backward()` before `optimizer.step()`."
        )


def rows_of(t: Tensor) -> Tensor:
    """All vectors of a batch as the rows of one matrix."""
    return t.reshape(-1, t.shape[-1])


def shaped(rows: Tensor, places: torch.Size) -> Tensor:
    """The inverse of `rows_of`, for results of a `Function`.

    Not by `view`: autograd lets nothing be done in place with a view that a `Function` returns, be
    it `nn.ReLU(inplace=True)` or `x += y`, and FSDP2 warns of it.
    """
    new: Tensor = torch.ops.aten._unsafe_view(rows, [*places, rows.shape[-1]])
    return new


def _apply(*inputs: Tensor | float | None) -> Tensor:
    y: Tensor = LowRankProduct.apply(*inputs)[0]
    return y
