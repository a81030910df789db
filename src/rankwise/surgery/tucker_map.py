"""A convolution seen as a tensor of low rank in both channel modes."""

import torch

from rankwise.nn.low_rank import LowRankModule
from rankwise.nn.tucker import TuckerConv2d
from rankwise.numerics.tucker import Tucker, hosvd, variance_preserving_tucker
from rankwise.surgery.dense_map import ConvolutionMap


class TuckerMap(ConvolutionMap):
    """`nn.Conv2d` for `TuckerConv2d`; one number is the rank of both modes, where they allow it."""

    def ranks(self, rank: int) -> tuple[int, int]:
        """`(p, q)`: clipped to the channels, and to `p <= q kh kw`, `q <= p kh kw`."""
        out, into, *size = self.weight.shape
        places = size[0] * size[1]
        p, q = min(rank, out), min(rank, into)
        return min(p, q * places), min(q, p * places)

    def thin_numel(self, rank: int) -> int:
        out, into, kh, kw = self.weight.shape
        p, q = self.ranks(rank)
        return p * out + q * into + p * q * kh * kw

    def thin_products(self, rank: int) -> int:
        out, into, kh, kw = self.weight.shape
        p, q = self.ranks(rank)
        # The first map meets every place of the input, of which a stride leaves a part.
        first = q * into * self.module.stride[0] * self.module.stride[1]
        return first + p * q * kh * kw + p * out

    def truncated(self, rank: int) -> Tucker:
        return hosvd(self.weight.detach(), self.ranks(rank))

    def random(self, rank: int, gain: float, draw: torch.Generator) -> Tucker:
        out, into, kh, kw = self.weight.shape
        return variance_preserving_tucker(
            out,
            into,
            (kh, kw),
            self.ranks(rank),
            gain=gain,
            generator=draw,
            like=self.weight.new_empty(0),
        )

    def low_rank(self, factors: Tucker) -> LowRankModule:
        moves = self.moves()
        del moves["kernel_size"]
        return TuckerConv2d(factors, bias=self.module.bias, **moves)  # type: ignore[arg-type]
