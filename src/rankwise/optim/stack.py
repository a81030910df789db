"""Tensors of many layers as one: stacked, the smaller ones filled up with zeros."""

from collections.abc import Sequence

import torch
from torch import Tensor


def filled(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """`parts` in one tensor (len(parts), *shape), zeros behind the end of each."""
    if all(list(part.shape) == list(shape) for part in parts):
        return torch.stack(list(parts))
    stack = parts[0].new_zeros(len(parts), *shape)
    places = [
        whole[tuple(map(slice, part.shape))]
        for whole, part in zip(stack.unbind(), parts, strict=True)
    ]
    torch._foreach_copy_(places, list(parts))
    return stack


def columns_kept(stack: Tensor, counts: Sequence[int]) -> Tensor:
    """Stacked matrices (B, m, k) with zeros behind the first `counts[i]` columns of each."""
    width = stack.shape[-1]
    if all(count == width for count in counts):
        return stack
    counted = torch.tensor(list(counts), device=stack.device)
    kept = torch.arange(width, device=stack.device) < counted[:, None]
    return stack * kept[:, None, :]
