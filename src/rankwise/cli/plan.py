"""`rankwise plan`: what fine-tuning would adapt, without doing it."""

import torch
from torch import Tensor

from rankwise.recipes.builtin import minilm_folder
from rankwise.recipes.classifier import Classifier, block_maps, pretrained_classifier
from rankwise.recipes.language import longest
from rankwise.surgery.plan import plan


def run_plan(
    model: str | None = None,
    rank: int = 8,
    select: tuple[str, ...] = (),
    batch_size: int | None = None,
    max_length: int = 40,
) -> None:
    """Show which layers of a model would be adapted, with which rank and size, and why not.

    With a batch size also what a training step would take, next to LoRA and full fine-tuning.

    Args:
        model: Folder or hub name of the encoder [built-in: all-MiniLM-L6-v2].
        rank: Rank of every layer.
        select: Layers to adapt, by name or pattern [every linear map of the encoder's blocks].
        batch_size: Texts in a step, of which time and memory are predicted [no prediction].
        max_length: Tokens of each of these texts.
    """
    classifier = pretrained_classifier(model or minilm_folder(), classes=2, seed=0).model
    maps = [f"encoder.{name}" for name in block_maps(classifier.encoder)]
    chosen = list(select) or maps
    batch = None if batch_size is None else _texts(classifier, batch_size, max_length)
    print(plan(classifier, rank=rank, select=chosen, exclude="head", train="head", example=batch))


def _texts(classifier: Classifier, batch_size: int, max_length: int) -> dict[str, Tensor]:
    """A batch in which no text is shorter than others; which words is all the same."""
    most = longest(classifier.encoder)
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if max_length < 1 or (most is not None and max_length > most):
        limit = "" if most is None else f" and, of this model, at most {most}"
        raise ValueError(f"--max-length must be at least 1{limit}, got {max_length}")
    tokens = torch.ones(batch_size, max_length, dtype=torch.long)
    return {"input_ids": tokens, "attention_mask": tokens}
