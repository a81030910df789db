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


def filled_columns(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The same of tall matrices (m, k), column by column in memory, see `times`."""
    return filled([part.mT for part in parts], shape[::-1]).mT


def columns_kept(stack: Tensor, counts: Sequence[int]) -> Tensor:
    """Stacked matrices (B, m, k) with zeros behind the first `counts[i]` columns of each."""
    width = stack.shape[-1]
    if all(count == width for count in counts):
        return stack
    counted = torch.tensor(list(counts), device=stack.device)
    kept = torch.arange(width, device=stack.device) < counted[:, None]
    return stack * kept[:, None, :]


def columns(stack: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    """The first `counts[i]` columns of each matrix of a stack (B, m, k)."""
    if all(count == stack.shape[-1] for count in counts):
        return stack.unbind()
    return [t[:, :count] for t, count in zip(stack.unbind(), counts, strict=True)]


def corners(stack: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    """The first `counts[i]` rows and columns of each matrix of a stack (B, k, k)."""
    if all(count == stack.shape[-1] for count in counts):
        return stack.unbind()
    return [t[:count, :count] for t, count in zip(stack.unbind(), counts, strict=True)]
