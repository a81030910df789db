"""The convolution in Tucker form: low rank in its output channels and in its input channels."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from rankwise.nn.function import check_rank_kept
from rankwise.nn.geometry import Geometry, Pair, as_geometry, convolve, pointwise, sum_of_products
from rankwise.nn.low_rank import LowRankModule
from rankwise.nn.plain import convolution
from rankwise.numerics.tucker import Tucker, second_mode, unit_cores
from rankwise.numerics.tucker_tangent import TuckerTangent, tangent_at


class TuckerConv2d(LowRankModule):
    """`y = conv2d(x, W) + bias` with `W[o, i] = sum_{a, b} core[a, b] U[o, a] V[i, b]`.

    It runs as a map of channels `V^T`, a convolution with the small kernel `core` and a map of
    channels `U`: `p out + q in + p q kh kw` numbers for the work of `out in kh kw`. The ranks p
    and q adapt each by itself.

    Args:
        factors: `U` (out, p), `core` (p, q, kh, kw), `V` (in, q); `U`, `V` with orthonormal
            columns, `p <= q kh kw` and `q <= p kh kw`. See `rankwise.numerics.tucker`.
        stride: >= 1.
        padding: with zeros, >= 0.
        dilation: >= 1.
        bias: (out,).
    """

    point_type: ClassVar[type[Tucker]] = Tucker

    core: nn.Parameter

    def __init__(
        self,
        factors: Tucker,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(factors, bias=bias)
        kh, kw = factors.core.shape[2:]
        self.geometry = as_geometry((kh, kw), stride, padding, dilation)
        self.kernel_size = self.geometry.kernel_size

    @property
    def out_channels(self) -> int:
        return self.U.shape[0]

    @property
    def in_channels(self) -> int:
        return self.V.shape[0]

    @property
    def thin_numel(self) -> int:
        return sum(p.numel() for p in self.factor_parameters())

    def kernel(self) -> Tensor:
        """`W` (out, in, kh, kw), detached: the weight of the `nn.Conv2d` that does the same."""
        return self.factors().dense()

    def forward(self, x: Tensor) -> Tensor:
        factors = self.U, self.core, self.V
        return convolve(
            TuckerConvolution, x, factors, self.bias, self.geometry, channels=self.in_channels
        )

    def dense_layer(self) -> nn.Module:
        moves = self.geometry.moves()
        return convolution(nn.Conv2d, self.kernel(), self.bias, **moves).train(self.training)

    def thin_layers(self) -> nn.Sequential:
        U, core, V = self.factors()
        first = convolution(nn.Conv2d, pointwise(V.mT), None)
        middle = convolution(nn.Conv2d, core, None, **self.geometry.moves())
        last = convolution(nn.Conv2d, pointwise(U), self.bias)
        return nn.Sequential(first, middle, last).train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, ranks={self.ranks}, {self.geometry}"

    def factors(self) -> Tucker:
        return Tucker(self.U.detach(), self.core.detach(), self.V.detach())

    def tangent_gradient(self) -> TuckerTangent:
        K, L, C = self.gradient()
        assert K is not None and L is not None and C is not None
        return tangent_at(self.factors(), K, L, C)


class TuckerConvolution(Function):
    """`x` (b, i, h, w), `U` (o, p), `core` (p, q, kh, kw), `V` (i, q), `bias` (o,) or None.

    With the unit cores `A`, `B` of `core` the slots of `U`, `V`, `core` get the coordinates
    `K`, `L`, `C` of the tangent gradient, see `rankwise.numerics.tucker_tangent`. Nothing of the
    size of the kernel is formed: with `a = V^T x` and `h = U^T dy`, `K` is the sum of the products
    of `dy` with the convolution of `a` by `A`, and `L` that of `x` with `h` carried back by `B`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, U: Tensor, core: Tensor, V: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        U, core, V = (t.to(x.dtype) for t in (U, core, V))
        a = conv2d(x, pointwise(V.mT))
        return conv2d(conv2d(a, core, None, *geometry[1:]), pointwise(U), bias), a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, U, core, V, _, ctx.geometry = inputs
        ctx.ranks = tuple(core.shape[:2])
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1], U, core, V)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, a, U, core, V = ctx.saved_tensors
        for before, now in zip(ctx.ranks, core.shape[:2], strict=True):
            check_rank_kept(before, now)
        needs, motion = ctx.needs_input_grad, ctx.geometry[1:]
        A, B = unit_cores(core.detach())
        # core = B x2 S2, so that what B carries back serves the gradient of the input as well.
        S = second_mode(core) @ second_mode(B).mT
        U, A, B, S, V = (t.to(dy.dtype) for t in (U, A, B, S, V))
        h = conv2d(dy, pointwise(U.mT))
        dx = K = C = L = db = None
        if needs[0] or needs[3]:
            back = conv2d_input(a.shape, B, h, *motion)
            dx = conv2d(back, pointwise(V @ S)) if needs[0] else None
            L = sum_of_products(x, back) if needs[3] else None
        if needs[1]:
            K = sum_of_products(dy, conv2d(a, A, None, *motion))
        if needs[2]:
            C = conv2d_weight(a, core.shape, h, *motion)
        if needs[4]:
            db = dy.sum((0, 2, 3))
        return dx, K, C, L, db, None
