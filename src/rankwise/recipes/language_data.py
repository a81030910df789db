"""Rows for a language model: read, cut to length, held out, packed."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.recipes.hub import hub_records
from rankwise.recipes.king_james import KING_JAMES, king_james
from rankwise.recipes.language_files import read_language, read_paragraphs, rows_of_records
from rankwise.recipes.language_rows import (
    Conversation,
    LanguageRow,
    Text,
    Tokens,
    opening,
    pieces_of,
    whole,
)
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.packing import Row, packed

HELD_OUT_ROWS = 24
"""So many rows' tokens are held out of one file at most."""


class LanguageData(NamedTuple):
    """What is trained on and what is held out, as tokens."""

    form: str
    """In words, such as "conversations"."""
    train: list[Row]
    held_out: list[Row]
    questions: list[Tokens]
    """Held-out examples in their order, uncut: what samples begin with."""
    facts: dict[str, int]

    def fingerprint(self) -> str:
        text = json.dumps([self.train, self.held_out])
        return hashlib.sha256(text.encode()).hexdigest()


def language_data(options: FinetuneOptions, tokenizer: Any, length: int) -> LanguageData:
    """The data that `options` name, in rows of at most `length` tokens.

    Raises FileNotFoundError, ValueError, ImportError or RuntimeError with what to do.
    """
    assert options.data is not None
    form, examples = _examples(options.data, options, tokenizer, length)
    if options.eval_data is None:
        if len(examples) < 2:
            raise ValueError(
                f"{options.data}: it makes 1 example of up to {length} tokens, and one has to be "
                "held out beside: give more text, --eval-data, or a smaller --max-length"
            )
        random.Random(options.seed).shuffle(examples)
        held = _held_out(examples, options.eval_fraction, HELD_OUT_ROWS * length)
        train, held_out = examples[held:], examples[:held]
    else:
        train = examples
        random.Random(options.seed).shuffle(train)
        _, held_out = _examples(str(options.eval_data), options, tokenizer, length)
    kept, fitting = (_fitting(part, length) for part in (train, held_out))
    for part, name in ((kept, "to train on"), (fitting, "held out")):
        if not part:
            raise ValueError(
                f"{options.data}: no example {name} has a counted token within --max-length "
                f"{length}"
            )
    facts = {
        "examples": len(kept),
        "tokens": sum(len(example.ids) for example in kept),
        "counted_tokens": sum(sum(example.counted[1:]) for example in kept),
        "cut_examples": sum(len(example.ids) > length for example in train),
        "left_out_examples": len(train) - len(kept),
        "held_out_examples": len(fitting),
    }
    rows, held_rows = (_rows(part, length, options.pack) for part in (kept, fitting))
    facts |= {"rows": len(rows), "held_out_rows": len(held_rows)}
    return LanguageData(form, rows, held_rows, held_out, facts)


def passages(tokenizer: Any, pieces: Sequence[str], length: int) -> list[Tokens]:
    """Pieces in a row, as many as fit into `length` tokens; a longer piece is split."""
    start = opening(tokenizer)
    found: list[list[int]] = []
    current = list(start)
    for piece in pieces_of(tokenizer, pieces):
        if len(current) + len(piece) > length and len(current) > len(start):
            found.append(current)
            current = list(start)
        current = current + piece
        while len(current) > length:
            found.append(current[:length])
            current = start + current[length:]
    found.append(current)
    return [whole(ids) for ids in found if len(ids) > len(start) + 1]


def _examples(
    source: str, options: FinetuneOptions, tokenizer: Any, length: int
) -> tuple[str, list[Tokens]]:
    path = Path(source)
    if not path.exists() and source == KING_JAMES:
        verses = [f"{verse.strip()}\n" for verse in king_james()]
        return "verses of the King James Bible", passages(tokenizer, verses, length)
    if path.suffix.lower() == ".txt":
        found = passages(tokenizer, read_paragraphs(path), length)
        if not found:
            raise ValueError(f"{path}: the text has fewer than two tokens")
        return "text", found
    if path.suffix or path.exists():
        rows = read_language(path)
    else:
        rows = rows_of_records(source, hub_records(source))
    try:
        tokens = [row.tokens(tokenizer, everything=options.train_on_prompts) for row in rows]
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if isinstance(rows[0], Text):
        tokens = [part for example in tokens for part in _split(example, length)]
    return _form(rows[0]), tokens


def _form(row: LanguageRow) -> str:
    if isinstance(row, Conversation):
        return "conversations"
    return "texts" if isinstance(row, Text) else "prompts with completions"


def _split(example: Tokens, length: int) -> list[Tokens]:
    ids = example.ids
    parts = [ids[i : i + length] for i in range(0, len(ids), length)]
    return [whole(part) for part in parts if len(part) > 1]


def _fitting(examples: Sequence[Tokens], length: int) -> list[Tokens]:
    """Cut to `length`; without those of which no counted token is left that follows another."""
    cut = [Tokens(e.ids[:length], e.counted[:length], e.begins) for e in examples]
    return [example for example in cut if any(example.counted[1:])]


def _held_out(examples: Sequence[Tokens], fraction: float, tokens: int) -> int:
    """How many of the first examples: that part, but no more than `tokens`; at least one."""
    wanted = min(max(1, round(fraction * len(examples))), len(examples) - 1)
    taken = count = 0
    while count < wanted and (not count or taken + len(examples[count].ids) <= tokens):
        taken += len(examples[count].ids)
        count += 1
    return count


def _rows(examples: Sequence[Tokens], length: int, pack: bool) -> list[Row]:
    return packed(examples, length) if pack else [[example] for example in examples]
