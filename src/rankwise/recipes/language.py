"""A causal language model: loading it, its loss, and what it writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.recipes.causal import is_causal
from rankwise.recipes.classifier import load_pretrained
from rankwise.recipes.language_rows import Tokens
from rankwise.recipes.packing import IGNORED, Row, batch_of
from rankwise.recipes.subject import to_device

EVALUATED_TOKENS = 1024
"""In one forward pass of a measurement, about."""
SAMPLES = 3


class Loss(NamedTuple):
    """Mean negative log-likelihood in nats, over so many tokens."""

    mean: float
    tokens: int


class Sample(NamedTuple):
    """How a model goes on, greedily, and how the data do."""

    prompt: str
    reference: str
    written: str


def load_causal(source: str | Path) -> tuple[Any, Any]:
    """A causal language model in float32 and its tokenizer; ValueError for another model."""
    if not is_causal(source):
        raise ValueError(
            f"--model {str(source)!r} does not predict a next token (it is an encoder, or a part "
            "of a model): these data need a causal language model, or labels for a classifier"
        )
    model, tokenizer = load_pretrained(source, "AutoModelForCausalLM")
    if not tokenizer.is_fast:
        raise ValueError(f"{str(source)!r} has a slow tokenizer, which tells no places of tokens")
    return model, tokenizer


def longest(model: nn.Module) -> int | None:
    """Positions that a model knows, None if it does not say."""
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def loss_sum(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihoods of all tokens with a label, and their number."""
    inputs = to_device(batch, model)
    labels = inputs.pop("labels")[:, 1:].flatten()
    logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()


def loss_of(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """Mean over all tokens that count in these rows."""
    total, tokens = loss_sum(model, batch_of(rows))
    return total / tokens


@torch.no_grad()
def evaluate(model: nn.Module, rows: Sequence[Row]) -> Loss:
    """The loss over all rows, without dropout; batches of similar length."""
    training = model.training
    model.eval()
    total = tokens = 0.0
    ordered = sorted(rows, key=lambda row: sum(len(example.ids) for example in row))
    size = max(1, EVALUATED_TOKENS // sum(len(example.ids) for example in ordered[-1]))
    for start in range(0, len(ordered), size):
        loss, count = loss_sum(model, batch_of(ordered[start : start + size]))
        total += float(loss)
        tokens += float(count)
    model.train(training)
    return Loss(total / tokens, int(tokens))


@torch.no_grad()
def samples(
    model: Any, tokenizer: Any, questions: Sequence[Tokens], *, longest: int, tokens: int
) -> list[Sample]:
    """Greedy answers of at most `tokens` tokens to the first few prompts of at most `longest`."""
    if not tokens:
        return []
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    found = []
    for question in [q for q in questions if 0 < q.begins <= longest][:SAMPLES]:
        prompt = torch.tensor([question.ids[: question.begins]], device=device)
        written = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=_greedy(model, tokenizer, tokens),
        )[0, question.begins :]
        following = question.ids[question.begins : question.begins + tokens]
        parts = (question.ids[: question.begins], following, written)
        found.append(Sample(*(tokenizer.decode(p, skip_special_tokens=True) for p in parts)))
    model.train(training)
    return found


def _greedy(model: Any, tokenizer: Any, tokens: int) -> Any:
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=ends,
        pad_token_id=0 if pad is None else pad,
        use_cache=True,
    )
