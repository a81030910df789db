"""What is fine-tuned at the level of models: a model, where its adapters go, and one batch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.recipes import classifier
from rankwise.recipes.builtin import minilm_folder, movie_reviews
from rankwise.recipes.king_james import king_james
from rankwise.recipes.smollm2 import smollm2_folder

CLASSES = 2


@dataclass(frozen=True)
class Workload:
    """A model and a batch of one shape; `fresh` copies of the model are trained on it."""

    model: nn.Module
    body: str
    """Module that gets adapters, on all linear maps in its blocks; "" is the model itself."""
    embedding: str
    """Module whose output is the input of the first block."""
    batch: dict[str, Tensor]
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]

    def fresh(self) -> nn.Module:
        return copy.deepcopy(self.model).requires_grad_(False).train()

    def targets(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of each map that gets an adapter."""
        body = self.model.get_submodule(self.body)
        shapes = {name: body.get_submodule(name).weight for name in classifier.block_maps(body)}
        return {name: (int(w.shape[0]), int(w.shape[1])) for name, w in shapes.items()}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def minilm(rows: int, length: int, device: torch.device) -> Workload:
    """all-MiniLM-L6-v2, a classifier of reviews; every row is full of words."""
    model, tokenizer = classifier.pretrained_classifier(minilm_folder(), CLASSES, 0)
    text = " ".join(example.text for example in movie_reviews(0).train[:2000])
    batch = {**words(tokenizer, text, rows, length), "labels": torch.arange(rows) % CLASSES}
    return _on(device, model, "encoder", "encoder.embeddings", batch, classifier.loss_of)


def smollm2(rows: int, length: int, device: torch.device) -> Workload:
    """SmolLM2-135M, next tokens of the King James text."""
    model, tokenizer = classifier.load_pretrained(smollm2_folder(), "AutoModelForCausalLM")
    batch = words(tokenizer, " ".join(king_james()[:2000]), rows, length)
    batch["labels"] = batch["input_ids"]
    return _on(device, model, "", "model.embed_tokens", batch, _own_loss)


def vit(rows: int, size: int, device: torch.device) -> Workload:
    """A vision transformer of 12 blocks of width 192 on patches of 16 x 16, with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=size,
        num_labels=CLASSES,
    )
    model = ViTForImageClassification(config)
    batch = {"pixel_values": torch.randn(rows, 3, size, size), "labels": torch.arange(rows) % 2}
    return _on(device, model, "vit", "vit.embeddings", batch, _own_loss)


WORKLOADS: dict[str, Callable[[int, int, torch.device], Workload]] = {
    "MiniLM": minilm,
    "SmolLM2": smollm2,
    "ViT": vit,
}


def words(tokenizer: Any, text: str, rows: int, length: int) -> dict[str, Tensor]:
    """The first `rows * length` tokens of a text, no padding."""
    # Ten characters a token are enough for any text; tokenizers warn of longer ones than they need.
    tokens = tokenizer(text[: 10 * rows * length], add_special_tokens=False, verbose=False)
    ids = torch.tensor(tokens["input_ids"][: rows * length]).view(rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def _on(
    device: torch.device,
    model: nn.Module,
    body: str,
    embedding: str,
    batch: dict[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
) -> Workload:
    placed = {name: tensor.to(device) for name, tensor in batch.items()}
    return Workload(model.to(device), body, embedding, placed, loss)
