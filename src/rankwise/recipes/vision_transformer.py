"""A small vision transformer of plain layers."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A block of a transformer, normalised first; its six maps are plain linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (self._split(part(y)) for part in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Patches as words, their mean classified (Dosovitskiy et al., 2021)."""

    def __init__(
        self, classes: int, channels: int, size: int, patch: int, width: int, depth: int
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"--model vit cuts patches of {patch}; images of {size} do not divide")
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, self.patch, stride=self.patch).mT
        states: Tensor = self.blocks(self.embed(patches) + self.places)
        return self.head(self.norm(states.mean(1)))


def vit(classes: int, channels: int, size: int) -> VisionTransformer:
    """Four blocks of width 128 on patches of 7 x 7 (4 x 4 where 7 does not divide `size`)."""
    patch = 7 if size % 7 == 0 else 4
    return VisionTransformer(classes, channels, size, patch, width=128, depth=4)
