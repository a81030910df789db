"""The convolution of low rank over one dimension: that over two, on an image of height one."""

from typing import ClassVar

from torch import Tensor, nn

from rankwise.nn.conv import LowRankConv2d
from rankwise.numerics.factors import Factors


class LowRankConv1d(LowRankConv2d):
    """`y = conv1d(x, W) + bias`, where `W` as a matrix (out, in * k) is `U S V^T`.

    Args:
        factors: `U` (out, r), `S` (r, r), `V` (in * k, r).
        kernel_size: k, >= 1.
        stride: >= 1.
        padding: with zeros, >= 0.
        dilation: >= 1.
        bias: only without a base, (out,).
        base: a convolution that moves in the same way, or None.
        scale: factor of the low-rank part, finite and not 0, fixed for good.
    """

    plain: ClassVar[type[nn.Module]] = nn.Conv1d
    dimensions: ClassVar[int] = 1

    def __init__(
        self,
        factors: Factors,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: Tensor | None = None,
        base: nn.Module | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(
            factors,
            (1, kernel_size),
            stride=(1, stride),
            padding=(0, padding),
            dilation=(1, dilation),
            bias=bias,
            base=base,
            scale=scale,
        )

    def input_rows(self, x: Tensor) -> Tensor:
        return super().input_rows(x.unsqueeze(-2))

    def output_rows(self, y: Tensor) -> Tensor:
        return super().output_rows(y.unsqueeze(-2))

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.ndim not in (2, 3) or x.shape[-2] != self.in_channels:
            raise ValueError(
                f"the input must be (batch, {self.in_channels}, length) or without the batch, got "
                f"{tuple(x.shape)}"
            )
        return super().product(x.unsqueeze(-2), bias).squeeze(-2)
