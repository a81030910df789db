"""Reading labelled texts from .csv, .tsv and .jsonl files, with errors that name row and column."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rankwise.io.json_object import parsed
from rankwise.io.ordinary import ordinary
from rankwise.recipes.examples import Dataset, Example, split

TEXT_NAMES = ("text", "sentence", "review", "content", "body", "comment", "message", "tweet")
LABEL_NAMES = ("label", "labels", "target", "class", "category", "sentiment", "rating", "y")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
MAX_LINE = 2**24
"""Characters of a line, beyond any text that one trains on."""


class Row(NamedTuple):
    """A text, its label as written, and the line of the file it came from."""

    text: str
    label: str
    line: int


def read_dataset(
    path: Path,
    *,
    text_column: str | None,
    label_column: str | None,
    eval_path: Path | None,
    eval_fraction: float,
    seed: int,
) -> Dataset:
    """Examples of a file, with a part of it or another file held out.

    Raises ValueError naming file, line and column of what is wrong.
    """
    rows = read_rows(path, text_column, label_column)
    classes = tuple(sorted({row.label for row in rows}, key=_natural))
    if len(classes) < 2:
        raise ValueError(f"{path}: all {len(rows)} rows have the label {classes[0]!r}; two needed")
    examples = [Example(row.text, classes.index(row.label)) for row in rows]
    if eval_path is None:
        held_out = max(1, round(eval_fraction * len(examples)))
        if held_out >= len(examples):
            raise ValueError(f"{path}: {len(examples)} rows are too few to hold out {held_out}")
        train, held = split(examples, held_out, seed)
        _check_classes(path, train, classes)
        return Dataset(train, held, classes)
    held_rows = read_rows(eval_path, text_column, label_column)
    for row in held_rows:
        if row.label not in classes:
            raise ValueError(
                f"{eval_path}, line {row.line}: label {row.label!r} does not occur in {path}, "
                f"which has {', '.join(map(repr, classes))}"
            )
    held = [Example(row.text, classes.index(row.label)) for row in held_rows]
    train, _ = split(examples, 0, seed)
    return Dataset(train, held, classes)


def read_rows(path: Path, text_column: str | None, label_column: str | None) -> list[Row]:
    """All rows; each must have a text and a label."""
    found = list(records(path))
    if not found:
        raise ValueError(f"{path}: there are no rows")
    columns = list(dict.fromkeys(name for _, record in found for name in record))
    text = _column(path, columns, text_column, TEXT_NAMES, "--text-column")
    label = _column(path, columns, label_column, LABEL_NAMES, "--label-column")
    if text == label:
        raise ValueError(f"{path}: column {text!r} cannot be text and label at once")
    return [
        Row(_value(path, line, record, text), _value(path, line, record, label), line)
        for line, record in found
    ]


def records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line and content of each row of a .csv, .tsv or .jsonl file."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    suffix = path.suffix.lower()
    if suffix not in (*SEPARATORS, ".jsonl"):
        raise ValueError(f"{path}: the name must end in .csv, .tsv or .jsonl")
    try:
        with open(path, encoding="utf-8-sig", newline="", opener=ordinary) as file:
            lines = _lines(path, file)
            if suffix == ".jsonl":
                yield from _json_lines(path, lines)
            else:
                yield from _separated(path, lines, SEPARATORS[suffix])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_text(path: Path) -> str:
    """All of a file of UTF-8 text.

    Raises FileNotFoundError or ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """No more of a line is read than `MAX_LINE`."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(f"{path}, line {number}: more than {MAX_LINE:,} characters")
        yield line


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        yield number, parsed(line, f"{path}, line {number}", "JSON object")


def _separated(
    path: Path, file: Iterator[str], separator: str
) -> Iterator[tuple[int, dict[str, object]]]:
    reader = _cells(path, csv.reader(file, delimiter=separator))
    header, _ = next(reader, (None, 1))
    if not header:
        raise ValueError(f"{path}: the first line must name the columns")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise ValueError(f"{path}, line 1: column {doubled[0]!r} is there twice")
    for cells, start in reader:
        if cells:
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {start}: {len(cells)} columns, the header has {len(header)}"
                )
            yield start, dict(zip(header, cells, strict=True))


def _cells(path: Path, reader: Any) -> Iterator[tuple[list[str], int]]:
    """Each row with the line on which it begins."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {start}: {error}; is there a quote without its end?"
            ) from None
        if cells is None:
            return
        yield cells, start


def _column(
    path: Path, columns: Sequence[str], asked: str | None, usual: Sequence[str], option: str
) -> str:
    have = ", ".join(map(repr, columns))
    if asked is not None:
        if asked not in columns:
            raise ValueError(f"{path}: there is no column {asked!r}; the columns are {have}")
        return asked
    found = [name for name in columns if name.lower().strip() in usual]
    if len(found) != 1:
        why = "none" if not found else "more than one"
        raise ValueError(
            f"{path}: {why} of the columns {have} has one of the usual names "
            f"({', '.join(usual)}); say which with {option}"
        )
    return found[0]


def _value(path: Path, line: int, record: dict[str, object], column: str) -> str:
    value = record.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    if not text or isinstance(value, (list, dict)):
        raise ValueError(f"{path}, line {line}: column {column!r} has no value")
    return text


def _natural(label: str) -> tuple[int, float, str]:
    """Integer labels in the order of numbers, then the others by name."""
    try:
        return (0, int(label), label)
    except ValueError:
        return (1, 0, label)


def _check_classes(path: Path, train: Sequence[Example], classes: Sequence[str]) -> None:
    missing = set(range(len(classes))) - {example.label for example in train}
    if missing:
        raise ValueError(
            f"{path}: all rows with label {classes[min(missing)]!r} were held out; give more rows "
            "of it, a smaller --eval-fraction, or --eval-data"
        )
