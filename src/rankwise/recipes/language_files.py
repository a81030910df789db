"""Reading what a language model is trained on, with errors that name file, line and key."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.recipes.language_rows import ROLES, Completion, Conversation, LanguageRow, Text
from rankwise.recipes.tables import read_text, records

FORMS = (("messages",), ("prompt", "completion"), ("text",))
"""Keys of the rows that can be read."""
WRITE = "messages, prompt and completion, or text"


def read_language(path: Path) -> list[LanguageRow]:
    """The rows of a .jsonl file: `{"messages": [...]}`, `{"prompt", "completion"}` or `{"text"}`.

    Raises FileNotFoundError or ValueError, naming what is wrong.
    """
    return rows_of_records(str(path), records(path))


def read_paragraphs(path: Path) -> list[str]:
    """A .txt file in pieces: between blank lines, or else line by line; each with its line ends."""
    text = read_text(path)
    pieces = [piece.strip("\n") for piece in text.replace("\r\n", "\n").split("\n\n")]
    end = "\n\n"
    if len(pieces) == 1:
        pieces, end = text.splitlines(), "\n"
    pieces = [piece.rstrip() + end for piece in pieces if piece.strip()]
    if not pieces:
        raise ValueError(f"{path}: there is no text")
    return pieces


def rows_of_records(
    source: str, numbered: Iterable[tuple[int, Mapping[str, Any]]]
) -> list[LanguageRow]:
    """Rows out of records and their lines; all of the form of the first."""
    found = list(numbered)
    if not found:
        raise ValueError(f"{source}: there are no rows")
    form = form_of(source, list(found[0][1]))
    return [_row(f"{source}, line {line}", line, record, form) for line, record in found]


def form_of(source: str, columns: Sequence[str]) -> tuple[str, ...]:
    """The first of `FORMS` whose keys are there; ValueError if there is none, or two."""
    complete = [form for form in FORMS if set(form) <= set(columns)]
    if not complete:
        raise ValueError(
            f"{source}: a language model is trained on {WRITE}; the first row has "
            f"{', '.join(map(repr, columns)) or 'no keys'}"
        )
    if len(complete) > 1:
        raise ValueError(
            f"{source}: the first row has {' as well as '.join(map(' and '.join, complete))}; "
            "leave one of them in the file"
        )
    return complete[0]


def _row(where: str, line: int, record: Mapping[str, Any], form: tuple[str, ...]) -> LanguageRow:
    if form == ("messages",):
        return Conversation(_messages(where, record.get("messages")), line)
    values = [_string(where, record, key) for key in form]
    return Text(values[0], line) if len(values) == 1 else Completion(values[0], values[1], line)


def _string(where: str, record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not (value.strip() or key == "prompt"):
        raise ValueError(f"{where}: {key!r} must be a text, got {_short(value)}")
    return value


def _messages(where: str, messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: 'messages' must be a list of turns, got {_short(messages)}")
    turns = []
    for number, message in enumerate(messages, 1):
        at = f"{where}, message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f'{at}: {{"role": ..., "content": ...}} needed, got {_short(message)}')
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"{at}: 'role' must be one of {', '.join(ROLES)}, got {_short(role)}")
        if not isinstance(content, str):
            raise ValueError(f"{at}: 'content' must be a text, got {_short(content)}")
        turns.append({"role": role, "content": content})
    if turns[0]["role"] == "assistant":
        raise ValueError(f"{where}: the first message is the assistant's, which answers nothing")
    if all(turn["role"] != "assistant" for turn in turns):
        raise ValueError(f"{where}: no message is the assistant's, so there is nothing to learn")
    return turns


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
