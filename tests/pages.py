"""The project's pages as text: code, commands, links; and what their code takes for granted."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BertConfig, BertForSequenceClassification

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FENCED = re.compile(r"^(?P<fence>```+)(?P<kind>.*?)\n(?P<text>.*?)^(?P=fence)`*\s*$", re.S | re.M)
INLINE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    """Of the page, where its text starts; from 1."""
    kind: str
    text: str


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start("text")) + 1, m["kind"].strip(), m["text"])
        for m in FENCED.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def command_lines(page: Path) -> Iterator[str]:
    """What a reader would type into a shell: lines of plain blocks, and code within the text."""
    for block in blocks(page):
        if block.kind in ("", "sh", "bash"):
            yield from (line.strip() for line in block.text.splitlines())
    yield from INLINE.findall(prose(page))


def run(block: Block, space: dict[str, Any]) -> None:
    """Execute a block in `space`; a traceback shows page and line."""
    exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), space)


def small_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
        )
    )


def text_classification() -> dict[str, Any]:
    """What the code of README, front page and guide takes for granted."""
    draw = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(6):
        tokens = torch.randint(50, (4, 7), generator=draw)
        batches.append({"input_ids": tokens, "labels": (tokens[:, 0] > 25).long()})
    models = {"model": small_model(), "base": small_model()}
    return {"torch": torch, **models, "batches": batches}
