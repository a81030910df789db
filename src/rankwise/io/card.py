"""The model card of a compressed model: what became of which layer, what was measured, loading."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rankwise.io import load_plain
from rankwise.surgery.thin import ThinLayers


class Measurement(NamedTuple):
    """One measure of the dense model and of the compressed one."""

    metric: str
    before: float | str
    after: float | str
    data: str
    """On which data, such as "the 10 000 test images of MNIST"."""


@dataclass(frozen=True)
class Card:
    """What a model cannot tell about itself."""

    title: str = "A compressed model"
    dense: str = "the dense model"
    """How to get the dense model, such as "`torchvision.models.resnet18()`"."""
    text: str = ""
    """How it was compressed and trained, for which use; Markdown."""
    measurements: Sequence[Measurement] = ()


class Content(NamedTuple):
    """What is read off the model that is saved."""

    thin: list[ThinLayers]
    before: int
    """Parameters of the dense model."""
    after: int
    products: tuple[int, int] | None
    """Multiplications by the weights of `thin` in an example, before and after."""
    attentions: list[str]
    """Names of attentions that are rankwise's."""


def card_text(card: Card, content: Content, weights: str) -> str:
    """Markdown; `weights` is the name of the file beside it."""
    parts = [f"# {card.title}", card.text, *_layers(card, content)]
    if card.measurements:
        parts += ["## Measured", _table(Measurement._fields, card.measurements)]
    parts += _loading(card, content, weights)
    return "\n\n".join(part for part in parts if part) + "\n"


def _layers(card: Card, content: Content) -> list[str]:
    thin, before, after = content.thin, content.before, content.after
    if not thin:
        return [f"{after:,} parameters; all layers are those of {card.dense}."]
    told = (
        f"{len(thin)} layers of {card.dense} are low rank here, each of thin plain layers in a "
        f"`torch.nn.Sequential`. Parameters: {before:,} before, {after:,} now "
        f"({1 - after / before:.1%} fewer)."
    )
    if content.products:
        one, two = content.products
        told += f" Multiplications by their weights in one example: {one:,} before, {two:,} now."
    rows = [
        (
            f"`{p.name}`",
            p.kind,
            "x".join(map(str, p.shape)),
            p.rank,
            _count(p.weights),
            _count(p.kept),
        )
        for p in thin
    ]
    rest = after - sum(layers.kept for layers in thin)
    rows.append(("everything else", "", "", "", _count(rest), _count(rest)))
    return [told, _table(("layer", "kind", "shape", "rank", "weights before", "now"), rows)]


def _count(number: int) -> str:
    return f"{number:,}" if number else "shared"


def _loading(card: Card, content: Content, weights: str) -> list[str]:
    source = Path(load_plain.__file__).read_text(encoding="utf-8").strip()
    call = f'model = load_plain(dense_model, "{weights}").eval()'
    if not content.attentions:
        needs = "It needs torch and safetensors, nothing else"
        return [
            "## Loading",
            f"{needs}: with `dense_model` for {card.dense}, built by its own code,",
            f"```python\n{source}\n\n\n{call}\n```",
        ]
    names = ", ".join(f'"{name}"' for name in content.attentions)
    attention = (
        "from rankwise.nn.attention import SplitAttention\n\n"
        f"for name in [{names}]:\n"
        "    _put(dense_model, name, SplitAttention(dense_model.get_submodule(name)))\n"
    )
    return [
        "## Loading",
        "This model is not free of rankwise: torch.nn.MultiheadAttention holds three matrices in "
        f"one, and where they are of low rank a class of rankwise stands in its place ({names}). "
        "Exported by `torch.export` or as ONNX the model needs no class at all; to load these "
        f"weights, install rankwise, and with `dense_model` for {card.dense}, built by its own "
        "code,",
        f"```python\n{source}\n\n\n{attention}{call}\n```",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
