"""A causal language model: it is to go on predicting the next token."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.compress.distill import distillation_loss
from rankwise.compress.fisher import sampled_cross_entropy
from rankwise.recipes.classifier import block_maps
from rankwise.recipes.subject import Batch, Subject, to_device


class NextToken(nn.Module):
    """Logits (rows, places, vocabulary) of a causal language model."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        logits: Tensor = self.language_model(**inputs).logits
        return logits


class LanguageSubject(Subject):
    """A causal language model and passages of tokens."""

    def __init__(
        self,
        name: str,
        language_model: nn.Module,
        tokenizer: Any,
        train: Sequence[Sequence[int]],
        held_out: Sequence[Sequence[int]],
    ) -> None:
        self.name, self.model = name, NextToken(language_model).eval()
        self.select = [f"language_model.{layer}" for layer in block_maps(language_model)]
        self.tokenizer, self.train, self.held_out = tokenizer, train, held_out
        self.rows = len(train)

    def batch(self, rows: Sequence[int]) -> Batch:
        return padded([self.train[i] for i in rows])

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits at places that have a next token, (places, vocabulary)."""
        logits = model(batch["input_ids"], batch["attention_mask"])
        return logits[:, :-1][batch["attention_mask"][:, 1:].bool()]

    def sampled_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return sampled_cross_entropy(self.output(model, to_device(batch, model)))

    def loss(self, output: Tensor, reference: Tensor | None, batch: Batch) -> Tensor:
        following = batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()]
        return nn.functional.cross_entropy(output.float(), following)

    def distance(self, output: Tensor, original: Tensor) -> Tensor:
        return distillation_loss(output, original)

    @torch.no_grad()
    def measure(self, model: nn.Module, rows: int | None = None) -> dict[str, float]:
        """Negative log-likelihood in nats a token, and its exponential."""
        training = model.training
        model.eval()
        total = tokens = 0.0
        held_out = self.held_out[:rows]
        for start in range(0, len(held_out), 4):
            batch = to_device(padded(held_out[start : start + 4]), model)
            output = self.output(model, batch)
            total += float(self.loss(output, None, batch)) * len(output)
            tokens += len(output)
        model.train(training)
        return {"loss": total / tokens, "perplexity": float(torch.tensor(total / tokens).exp())}

    def inner(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, NextToken)
        return model.language_model

    def save_beside(self, folder: Path) -> None:
        config: Any = self.inner(self.model).config
        config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def example(self, rows: int) -> Batch:
        passages = [self.held_out[i % len(self.held_out)] for i in range(rows)]
        return padded(passages)

    def fingerprint(self) -> str:
        text = json.dumps([list(self.train), list(self.held_out)])
        return hashlib.sha256(text.encode()).hexdigest()


def padded(passages: Sequence[Sequence[int]]) -> Batch:
    """Token ids, padded at the end, and the mask of what is not padding."""
    longest = max(map(len, passages))
    ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in passages])
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in passages])
    return {"input_ids": ids, "attention_mask": mask}


def passages_of(
    tokenizer: Any, texts: Sequence[str], *, length: int, held_out: int, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Pieces of `length` tokens of all texts in a row: shuffled, and some of them held out.

    Raises ValueError where there are too few.
    """
    tokens = [token for text in texts for token in tokenizer(text + "\n")["input_ids"]]
    pieces = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
    if len(pieces) < 2:
        raise ValueError(
            f"the texts make {len(pieces)} passages of {length} tokens; two are needed"
        )
    random.Random(seed).shuffle(pieces)
    held = min(held_out, max(1, len(pieces) // 5))
    return pieces[held:], pieces[:held]
