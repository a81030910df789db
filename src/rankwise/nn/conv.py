"""The convolution of low rank: its kernel as one matrix, `(out, in * height * width)`."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d, unfold
from torch.nn.grad import conv2d_input, conv2d_weight

from rankwise.nn.factored import Factored, adapter_repr
from rankwise.nn.function import check_rank_kept
from rankwise.nn.geometry import Geometry, Pair, as_geometry, convolve, pointwise, sum_of_products
from rankwise.nn.plain import convolution
from rankwise.numerics.factors import Factors


class LowRankConv2d(Factored):
    """`y = conv2d(x, W) + bias`, where `W` as a matrix (out, in * kh * kw) is `U S V^T`.

    With a base it is `y = base(x) + scale * conv2d(x, W)`.

    It runs as a convolution with `r` kernels, the columns of `V`, and a map of channels, `U S`. So
    `r (out + in kh kw)` numbers do the work of `out in kh kw`.

    Args:
        factors: `U` (out, r), `S` (r, r), `V` (in * kh * kw, r); row `c kh kw + i kw + j` of `V`
            belongs to input channel `c` and place (i, j), as in `nn.Conv2d.weight.flatten(1)`.
        kernel_size: (kh, kw), >= 1.
        stride: >= 1.
        padding: with zeros, >= 0.
        dilation: >= 1.
        bias: only without a base, (out,).
        base: a convolution that moves in the same way, with a kernel of the same shape; it is
            frozen. None: the factors are the kernel.
        scale: factor of the low-rank part, finite and not 0, fixed for good.

    Raises:
        ValueError: where the rows of `V` are no multiple of `kh * kw`.
    """

    plain: ClassVar[type[nn.Module]] = nn.Conv2d
    dimensions: ClassVar[int] = 2

    def __init__(
        self,
        factors: Factors,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        bias: Tensor | None = None,
        base: nn.Module | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(factors, base=base, bias=bias, scale=scale)
        self.geometry = as_geometry(kernel_size, stride, padding, dilation)
        self.kernel_size = kh, kw = self.geometry.kernel_size
        if self.shape[1] % (kh * kw):
            raise ValueError(
                f"`V` must have in_channels * {kh} * {kw} rows for a kernel of {kh} x {kw}, got "
                f"{self.shape[1]}"
            )

    @property
    def out_channels(self) -> int:
        return self.U.shape[0]

    @property
    def in_channels(self) -> int:
        kh, kw = self.geometry.kernel_size
        return self.V.shape[0] // (kh * kw)

    def input_rows(self, x: Tensor) -> Tensor:
        return patches(x, self.geometry)

    def output_rows(self, y: Tensor) -> Tensor:
        return places(y)

    def dense_layer(self) -> nn.Module:
        self.check_whole()
        W = self.scale * self.factors().dense()
        kernels = W.reshape(self.out_channels, self.in_channels, *self._size)
        return convolution(self.plain, kernels, self.bias, **self._moves).train(self.training)

    def thin_layers(self) -> nn.Sequential:
        self.check_whole()
        B, A = self.factors().scaled(self.scale).balanced()
        kernels = A.reshape(self.rank, self.in_channels, *self._size)
        first = convolution(self.plain, kernels, None, **self._moves)
        ones = (1,) * self.dimensions
        second = convolution(self.plain, B.reshape(*B.shape, *ones), self.bias)
        return nn.Sequential(first, second).train(self.training)

    @property
    def _size(self) -> tuple[int, ...]:
        return self.geometry.kernel_size[-self.dimensions :]

    @property
    def _moves(self) -> dict[str, tuple[int, ...]]:
        return {n: move[-self.dimensions :] for n, move in self.geometry.moves().items()}

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            assert self.base is not None
            whole: Tensor = self.base(x)
            return whole
        if self.scale == 1.0:
            y = self.product(x, self.bias)
        else:
            y = self.scale * self.product(x, None)
            y = y if self.bias is None else y + self.bias.reshape(-1, *[1] * self.dimensions)
        return y if self.base is None else self.base(x) + y

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`conv2d(x, U S V^T) + bias`."""
        factors = self.U, self.S, self.V
        return convolve(
            LowRankConvolution, x, factors, bias, self.geometry, channels=self.in_channels
        )

    def extra_repr(self) -> str:
        told = f"{self.in_channels}, {self.out_channels}, rank={self.rank}, {self.geometry}"
        return told + adapter_repr(self)


def patches(x: Tensor, geometry: Geometry) -> Tensor:
    """What the kernels of a convolution meet in `x` (b, c, h, w): (places, c kh kw)."""
    columns = unfold(x if x.ndim == 4 else x[None], *_unfolding(geometry))
    return columns.mT.reshape(-1, columns.shape[1])


def places(y: Tensor) -> Tensor:
    """The vectors of an image's places, (places, channels), in the order of `patches`."""
    return y.flatten(-2).mT.reshape(-1, y.shape[-3])


class LowRankConvolution(Function):
    """`x` (b, c, h, w), `U` (m, r), `S` (r, r), `V` (c kh kw, r), `bias` (m,) or None.

    The slots of `U`, `V`, `S` get `dK = G V`, `dL = G^T U`, `dS = U^T G V`, where `G` is the
    gradient with respect to the kernel as a matrix; see `rankwise.nn.function`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        U, S, V = (t.to(x.dtype) for t in (U, S, V))
        a = conv2d(x, _kernels(V, x.shape[1], geometry), None, *geometry[1:])
        return conv2d(a, pointwise(U @ S), bias), a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, U, S, V, _, ctx.geometry = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1], U, S, V)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, a, U, S, V = ctx.saved_tensors
        check_rank_kept(a.shape[1], V.shape[1])
        needs, geometry = ctx.needs_input_grad, ctx.geometry
        U, S, V = (t.to(dy.dtype) for t in (U, S, V))
        h = conv2d(dy, pointwise(U.mT))
        dx = dK = dS = dL = db = None
        if needs[0]:
            da = conv2d(h, pointwise(S.mT))
            dx = conv2d_input(x.shape, _kernels(V, x.shape[1], geometry), da, *geometry[1:])
        if needs[1]:
            dK = sum_of_products(dy, a)
        if needs[2]:
            dS = sum_of_products(h, a)
        if needs[3]:
            size = (S.shape[0], x.shape[1], *geometry.kernel_size)
            dL = conv2d_weight(x, size, h, *geometry[1:]).flatten(1).mT
        if needs[4]:
            db = dy.sum((0, 2, 3))
        return dx, dK, dS, dL, db, None


def _kernels(V: Tensor, channels: int, geometry: Geometry) -> Tensor:
    return V.mT.reshape(-1, channels, *geometry.kernel_size)


def _unfolding(geometry: Geometry) -> tuple[Pair, Pair, Pair, Pair]:
    return geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride
