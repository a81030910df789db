"""The convolution of low rank: its kernel as one matrix, `(out, in * height * width)`."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d, unfold
from torch.nn.grad import conv2d_input, conv2d_weight

from rankwise.nn.factored import Factored
from rankwise.nn.function import check_floating, check_rank_kept
from rankwise.numerics.factors import Factors

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel moves over an image, (vertical, horizontal); as in `nn.Conv2d`."""

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


class LowRankConv2d(Factored):
    """`y = conv2d(x, W) + bias`, where `W` as a matrix (out, in * kh * kw) is `U S V^T`.

    It runs as a convolution with `r` kernels, the columns of `V`, and a map of channels, `U S`. So
    `r (out + in kh kw)` numbers do the work of `out in kh kw`.

    Args:
        factors: `U` (out, r), `S` (r, r), `V` (in * kh * kw, r); row `c kh kw + i kw + j` of `V`
            belongs to input channel `c` and place (i, j), as in `nn.Conv2d.weight.flatten(1)`.
        kernel_size: (kh, kw), >= 1.
        stride: >= 1.
        padding: with zeros, >= 0.
        dilation: >= 1.
        bias: (out,).

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
    ) -> None:
        super().__init__(factors, bias=bias)
        self.geometry = Geometry(
            _pair("kernel_size", kernel_size, 1),
            _pair("stride", stride, 1),
            _pair("padding", padding, 0),
            _pair("dilation", dilation, 1),
        )
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
        kernels = self.factors().dense().reshape(self.out_channels, self.in_channels, *self._size)
        return convolution(self.plain, kernels, self.bias, **self._moves).train(self.training)

    def two_layers(self) -> nn.Sequential:
        B, A = self.factors().balanced()
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
        _, *moves = self.geometry
        names = Geometry._fields[1:]
        return {n: move[-self.dimensions :] for n, move in zip(names, moves, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"the input must be (batch, {self.in_channels}, height, width) or without the "
                f"batch, got {tuple(x.shape)}"
            )
        check_floating(x)
        y = low_rank_convolution(
            x if x.ndim == 4 else x[None], self.U, self.S, self.V, self.bias, self.geometry
        )
        return y if x.ndim == 4 else y[0]

    def extra_repr(self) -> str:
        told = [f"{self.in_channels}, {self.out_channels}, rank={self.rank}"]
        plain = Geometry(self.geometry.kernel_size)
        told += [
            f"{name}={value}"
            for name, value in self.geometry._asdict().items()
            if name == "kernel_size" or value != getattr(plain, name)
        ]
        return ", ".join(told)


def patches(x: Tensor, geometry: Geometry) -> Tensor:
    """What the kernels of a convolution meet in `x` (b, c, h, w): (places, c kh kw)."""
    columns = unfold(x if x.ndim == 4 else x[None], *_unfolding(geometry))
    return columns.mT.reshape(-1, columns.shape[1])


def places(y: Tensor) -> Tensor:
    """The vectors of an image's places, (places, channels), in the order of `patches`."""
    return y.flatten(-2).mT.reshape(-1, y.shape[-3])


def convolution(
    kind: type[nn.Module], kernels: Tensor, bias: Tensor | None, **moves: tuple[int, ...]
) -> Any:
    """A plain convolution with these kernels (out, in, ...), stride, padding and dilation."""
    out, into, *size = kernels.shape
    layer: Any = kind(into, out, tuple(size), bias=bias is not None, device="meta", **moves)
    layer.weight = nn.Parameter(kernels.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


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
        return conv2d(a, (U @ S)[:, :, None, None], bias), a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, U, S, V, _, ctx.geometry = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1], U, S, V)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, a, U, S, V = ctx.saved_tensors
        check_rank_kept(a.shape[1], S.shape[0])
        needs, geometry = ctx.needs_input_grad, ctx.geometry
        U, S, V = (t.to(dy.dtype) for t in (U, S, V))
        h = conv2d(dy, U.mT[:, :, None, None])
        dx = dK = dS = dL = db = None
        if needs[0]:
            da = conv2d(h, S.mT[:, :, None, None])
            dx = conv2d_input(x.shape, _kernels(V, x.shape[1], geometry), da, *geometry[1:])
        if needs[1]:
            dK = _sum_of_products(dy, a)
        if needs[2]:
            dS = _sum_of_products(h, a)
        if needs[3]:
            size = (S.shape[0], x.shape[1], *geometry.kernel_size)
            dL = conv2d_weight(x, size, h, *geometry[1:]).flatten(1).mT
        if needs[4]:
            db = dy.sum((0, 2, 3))
        return dx, dK, dS, dL, db, None


def low_rank_convolution(
    x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """The convolution of `x` (b, c, h, w) with the kernel `U S V^T`, in the type of `x`.

    Under autocast it computes in autocast's type. Differentiable in all tensors, as above.
    """
    device = x.device.type
    dtype = x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    x = x.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        y: Tensor = LowRankConvolution.apply(x, U, S, V, bias, geometry)[0]
    return y


def _kernels(V: Tensor, channels: int, geometry: Geometry) -> Tensor:
    return V.mT.reshape(-1, channels, *geometry.kernel_size)


def _sum_of_products(y: Tensor, a: Tensor) -> Tensor:
    """`sum over images and places of y a^T`, (channels of y, channels of a)."""
    return y.transpose(0, 1).flatten(1) @ a.transpose(0, 1).flatten(1).mT


def _unfolding(geometry: Geometry) -> tuple[Pair, Pair, Pair, Pair]:
    return geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or {type(v) for v in pair} != {int}:
        raise TypeError(
            f"`{name}` must be an int or two of them, such as 3 or (3, 5), got {value!r}"
        )
    if min(pair) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}")
    return pair[0], pair[1]
