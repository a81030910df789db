"""The language-model task: passages of the King James Bible, and what a model makes of them."""

from typing import Any

import torch
from torch import Tensor, nn

MAX_TOKENS = 128
MIN_TOKENS = 32
PASSAGES = 4000


def passages(tokenizer: Any, verses: list[str]) -> list[list[int]]:
    """Runs of whole verses of at most `MAX_TOKENS` tokens."""
    found: list[list[int]] = []
    current: list[int] = []
    for verse in verses:
        tokens = tokenizer(verse.strip() + "\n")["input_ids"]
        if len(current) + len(tokens) > MAX_TOKENS:
            if len(current) >= MIN_TOKENS:
                found.append(current[:MAX_TOKENS])
            current = []
        current = current + tokens
        if len(found) == PASSAGES:
            break
    return found


def collate(batch: list[list[int]]) -> dict[str, Tensor]:
    """Padded token ids, mask and labels of a batch of passages."""
    longest = max(map(len, batch))
    ids = torch.tensor([p + [0] * (longest - len(p)) for p in batch])
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), -100)}


@torch.no_grad()
def validation_nll(model: nn.Module, held_out: list[list[int]]) -> float:
    """Mean negative log-likelihood per token."""
    model.eval()
    total = tokens = 0.0
    for passage in held_out:
        count = len(passage) - 1
        total += model(**collate([passage])).loss.item() * count
        tokens += count
    model.train()
    return total / tokens
