"""Rows from the Hugging Face hub."""

from typing import Any

from rankwise.recipes.examples import Dataset, Example, split
from rankwise.recipes.tables import LABEL_NAMES, TEXT_NAMES

INSTALL = 'pip install "rankwise[hub]"'


def hub_dataset(
    name: str,
    *,
    text_column: str | None,
    label_column: str | None,
    eval_fraction: float,
    seed: int,
) -> Dataset:
    """The train split of a hub data set; its validation or test split, else a part, is held out.

    Raises ImportError without the `datasets` package, ValueError if the name or a column is wrong.
    """
    splits = _splits(name)
    columns = splits["train"].column_names
    text = _column(name, columns, text_column, TEXT_NAMES, "--text-column")
    label = _column(name, columns, label_column, LABEL_NAMES, "--label-column")
    labels = sorted(set(splits["train"][label]))
    if len(labels) < 2:
        raise ValueError(f"data set {name!r}: two labels are needed, column {label!r} has {labels}")
    train = _examples(splits["train"], text, label, labels)
    for held in ("validation", "test"):
        if held in splits and set(splits[held][label]) <= set(labels):
            shuffled, _ = split(train, 0, seed)
            rows = _examples(splits[held], text, label, labels)
            return Dataset(shuffled, rows, tuple(map(str, labels)))
    rest, held_out = split(train, max(1, round(eval_fraction * len(train))), seed)
    return Dataset(rest, held_out, tuple(map(str, labels)))


def hub_columns(name: str) -> list[str]:
    """Columns of the train split; errors as of `hub_dataset`."""
    columns: list[str] = _splits(name)["train"].column_names
    return columns


def hub_records(name: str) -> list[tuple[int, dict[str, Any]]]:
    """Number and content of each row of the train split; errors as of `hub_dataset`."""
    return list(enumerate(map(dict, _splits(name)["train"]), 1))


def _splits(name: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{name!r} is not a file; a hub data set of that name needs `datasets`: {INSTALL}"
        ) from error
    try:
        splits = load_dataset(name)
    except Exception as error:
        raise ValueError(f"no data set {name!r} could be loaded from the hub: {error}") from error
    if "train" not in splits:
        raise ValueError(f"data set {name!r} has no split 'train', it has {', '.join(splits)}")
    return splits


def _examples(rows: Any, text: str, label: str, labels: list[Any]) -> list[Example]:
    pairs = zip(rows[text], rows[label], strict=True)
    return [Example(str(content), labels.index(value)) for content, value in pairs]


def _column(
    name: str, columns: list[str], asked: str | None, usual: tuple[str, ...], option: str
) -> str:
    found = [c for c in columns if c == asked or (asked is None and c.lower() in usual)]
    if len(found) != 1:
        raise ValueError(
            f"data set {name!r} has the columns {', '.join(columns)}; say which with {option}"
        )
    return found[0]
