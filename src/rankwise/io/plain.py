"""Saving a model in plain PyTorch, so that it loads where rankwise is not installed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankwise.io.atomic import write_text
from rankwise.io.card import Card, Content, card_text
from rankwise.io.path import given_path
from rankwise.io.tensor_file import write_tensors
from rankwise.nn.attention import SplitAttention
from rankwise.nn.factored import Factored
from rankwise.surgery.select import listing
from rankwise.surgery.thin import ThinLayers, count_products, thin_layers

WEIGHTS = "model.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class PlainExport:
    """What was written; `print` it."""

    folder: Path
    thin: tuple[ThinLayers, ...]
    """Layers that are thin ones."""
    before: int
    """Parameters of the dense model."""
    after: int
    attentions: tuple[str, ...]
    """Attentions that need a class of rankwise to be loaded."""

    def __str__(self) -> str:
        fewer = f", {1 - self.after / self.before:.1%} fewer" if self.thin else ""
        lines = [
            f"{self.folder / WEIGHTS}: {len(self.thin)} layers in thin ones",
            f"parameters: {self.before:,} to {self.after:,}{fewer}",
            f"loads without rankwise: {'no' if self.attentions else 'yes'}, see {CARD}",
        ]
        if self.attentions:
            lines.append(f"rankwise's class stays at {listing(list(self.attentions))}")
        return "\n".join(lines)


def save_plain(
    model: nn.Module, folder: str | Path, *, card: Card | None = None, example: Any = None
) -> PlainExport:
    """Write `model.safetensors` and a model card that tells how to load it without rankwise.

    Args:
        model: as `rankwise.shrink` or `rankwise.densify_` made it; unchanged.
        folder: made if need be.
        card: what the model cannot tell about itself: a title, how to get the dense model, what was
            measured.
        example: an input of the model: a tensor, a tuple of arguments or a dict of named ones. With
            it, the card tells the multiplications before and after.

    Raises:
        ValueError: for a model with low-rank layers, or with a state that is no tensor. Nothing is
            written then.
    """
    check_plain(model)
    tensors, metadata = _tensors(model)
    thin = thin_layers(model)
    after = sum(p.numel() for p in model.parameters())
    before = after + sum(pair.weights - pair.kept for pair in thin)
    products = count_products(model, thin, example) if thin and example is not None else None
    attentions = [n for n, m in model.named_modules() if isinstance(m, SplitAttention)]
    content = Content(thin, before, after, products, attentions)
    path = given_path(folder)
    write_tensors(path / WEIGHTS, tensors, metadata)
    write_text(path / CARD, card_text(card or Card(), content, WEIGHTS))
    return PlainExport(path, tuple(thin), before, after, tuple(attentions))


def check_plain(model: nn.Module) -> None:
    """ValueError for a model with low-rank layers."""
    low_rank = [name for name, m in model.named_modules() if isinstance(m, Factored)]
    if low_rank:
        raise ValueError(
            f"{listing(low_rank)}: low rank still. Save `rw.shrink(model)`, which is plain; "
            "adapters end with `merge_(model, final=True)`."
        )


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and buffers, shared parameters once; in the metadata, of each other name which.

    That is the convention of `safetensors.torch.save_model`. `linear` names the linear layers: a
    `Conv1D` of Hugging Face, with a weight the other way round, may have become one.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ValueError(f"the state {name!r} is no tensor, which safetensors cannot hold")
        kept = names.setdefault(id(value), name)
        if kept != name and isinstance(value, nn.Parameter):
            metadata[name] = kept
        else:
            tensors[name] = value
    modules = model.named_modules(remove_duplicate=False)
    linear = [name for name, module in modules if type(module) is nn.Linear]
    return tensors, {**metadata, "linear": json.dumps(linear)}
