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
        U, S, V = in_type(x.dtype, U, S, V)
        rows = rows_of(x)
        a = contracted(rows, V)
        mixed = a @ scaled(S, scale).mT
        if W0 is None:
            y = mixed @ U.mT if b is None else torch.addmm(b.to(x.dtype), mixed, U.mT)
        else:
            y = plus_(torch.nn.functional.linear(rows, W0, b), mixed, U.mT)
        return shaped(y, x.shape[:-1]), a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, U, S, V, W0, _, scale = inputs
        _, a = output
        ctx.mark_non_differentiable(a)
        # Of the input only `dL` has need: where `V` rests, the largest tensor of all is let go.
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, a, U, S, V, W0)
        ctx.scale = scale

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, a, U, S, V, W0 = ctx.saved_tensors
        # Bases that rest are no parameters here, and keep the rank of the forward pass.
        check_rank_kept(a.shape[1], S.shape[1])
        needs, rows = ctx.needs_input_grad, rows_of(dy)
        U, S, V = in_type(dy.dtype, U, S, V)
        h = contracted(rows, U)
        dx = dK = dS = dL = db = None
        if needs[0]:
            mixed = h @ scaled(S, ctx.scale)
            dx = mixed @ V.mT if W0 is None else plus_(rows @ W0, mixed, V.mT)
            dx = dx.view(*dy.shape[:-1], dx.shape[1])
        if needs[1]:
            dK = scaled(spread(rows, a), ctx.scale)
        if needs[2]:
            dS = scaled(h.mT @ a, ctx.scale)
        if needs[3]:
            dL = scaled(spread(rows_of(x), h), ctx.scale)
        if needs[5]:
            db = rows.sum(0)
        return dx, dK, dS, dL, None, db, None


WIDE = 16
"""From this rank on products with a factor are as fast as others. Below, BLAS is up to four times
as fast with (r, rows) and contiguous factors as with (rows, r)."""


def contracted(X: Tensor, Q: Tensor) -> Tensor:
    """`X Q` (rows, r) of rows `X` (rows, n) and a factor `Q` (n, r)."""
    return X @ Q if Q.shape[1] >= WIDE else (Q.mT.contiguous() @ X.mT).mT


def spread(X: Tensor, a: Tensor) -> Tensor:
    """`X^T a` (n, r) of rows `X` (rows, n) and `a` (rows, r)."""
    return X.mT @ a if a.shape[1] >= WIDE else (a.mT @ X).mT


def plus_(y: Tensor, a: Tensor, B: Tensor) -> Tensor:
    """`y + a B`, into `y`: a sum of its own would read and write all of it once more."""
    if any(map(torch._C._functorch.is_batchedtensor, (y, a, B))):
        return y + a @ B  # `vmap` has no rule for the other.
    return y.addmm_(a, B)


def scaled(t: Tensor, scale: float) -> Tensor:
    return t if scale == 1.0 else t * scale


def in_type(dtype: torch.dtype, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, ...]:
    """The factors as they are multiplied."""
    return (U, S, V) if U.dtype == dtype else (U.to(dtype), S.to(dtype), V.to(dtype))


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
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    y: Tensor = (LowRankProduct.apply if transformed else _apply_plainly)(*inputs)[0]
    return y


# `Function.apply` binds its arguments by their signature each time, for transforms: a third of what
# a small layer takes. This is what it calls next.
_apply_plainly = super(Function, LowRankProduct).apply
