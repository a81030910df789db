"""A text classifier: a pretrained encoder, mean pooling, a linear head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.recipes.examples import Example

INSTALL = 'pip install "rankwise[finetune]"'


class Classifier(nn.Module):
    """`head(mean over tokens of encoder(tokens))`; pooling and head in float32."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0].float()
        weights = attention_mask.unsqueeze(-1).float()
        pooled = (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.head(pooled)
        return logits


class Pretrained(NamedTuple):
    """A classifier on a pretrained encoder, and the tokenizer that belongs to it."""

    model: Classifier
    tokenizer: Any


def pretrained_classifier(source: str | Path, classes: int, seed: int) -> Pretrained:
    """Encoder and tokenizer from a folder or by hub name, with a new head drawn from `seed`.

    Raises ImportError without transformers, ValueError if there is no such model.
    """
    encoder, tokenizer = load_encoder(source)
    torch.manual_seed(seed)
    return Pretrained(Classifier(encoder, encoder.config.hidden_size, classes), tokenizer)


def load_encoder(source: str | Path) -> tuple[Any, Any]:
    """An encoder and its tokenizer, which pads; errors as of `load_pretrained`."""
    encoder, tokenizer = load_pretrained(source, "AutoModel")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {str(source)!r} has no padding token")
        tokenizer.pad_token = tokenizer.eos_token
    return encoder, tokenizer


def load_pretrained(source: str | Path, kind: str) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer, by a class of transformers such as `AutoModel`.

    Raises ImportError without transformers, ValueError if there is no such model.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(f"pretrained models need transformers: {INSTALL}") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, loaded = getattr(transformers, kind).from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"no model could be loaded from {str(source)!r}: {first}") from error
    # A pooler is often left out of a file, and nothing here reads it.
    missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(
            f"{str(source)!r} holds no weight {missing[0]!r} ({len(missing)} are missing in all). "
            "A model that rankwise has shrunk is loaded as its card, README.md, says"
        )
    return model, tokenizer


def encode(tokenizer: Any, examples: Sequence[Example], max_length: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, padded to the longest, and `labels`."""
    encoded = tokenizer(
        [example.text for example in examples],
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    return {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "labels": torch.tensor([example.label for example in examples]),
    }


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of a batch from `encode`."""
    device = next(model.parameters()).device
    inputs = {name: t.to(device) for name, t in batch.items()}
    labels = inputs.pop("labels")
    return nn.functional.cross_entropy(model(**inputs).float(), labels)


class Score(NamedTuple):
    """Mean cross-entropy and share of right answers."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], max_length: int
) -> Score:
    """Score on `examples`, without dropout; batches of similar length."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    loss = right = 0.0
    ordered = sorted(examples, key=lambda example: len(example.text))
    for start in range(0, len(ordered), 50):
        batch = encode(tokenizer, ordered[start : start + 50], max_length)
        inputs = {name: t.to(device) for name, t in batch.items()}
        labels = inputs.pop("labels")
        logits = model(**inputs).float()
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += float((logits.argmax(1) == labels).sum())
    model.train(training)
    return Score(loss / len(ordered), right / len(ordered))


def block_maps(encoder: nn.Module) -> list[str]:
    """Names of the linear maps inside the encoder's stacks of blocks: no pooler, no embedding."""
    from rankwise.nn.base import is_linear

    stacks = [name for name, m in encoder.named_modules() if isinstance(m, nn.ModuleList)]
    return [
        name
        for name, module in encoder.named_modules()
        if is_linear(module) and any(name.startswith(f"{stack}.") for stack in stacks)
    ]
