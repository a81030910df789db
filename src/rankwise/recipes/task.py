"""What kind of fine-tuning data ask for: of a classifier, or of a language model."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from rankwise.recipes.hub import hub_columns
from rankwise.recipes.king_james import KING_JAMES
from rankwise.recipes.language_files import FORMS
from rankwise.recipes.options import FinetuneOptions, Task
from rankwise.recipes.tables import LABEL_NAMES, SEPARATORS, records

HINT = "say which with --task classifier or --task language"


def task_of(options: FinetuneOptions) -> Task:
    """Seen from the data where the options do not say; labels make a classifier.

    Raises ValueError where both are possible or neither is, and what reading the data raises.
    """
    if options.task is not None:
        return options.task
    if options.data is None:
        return "classifier"
    path = Path(options.data)
    if path.exists() or path.suffix:
        return _of_file(path, options)
    if options.data == KING_JAMES:
        return "language"
    if difflib.get_close_matches(options.data, [KING_JAMES]):
        raise ValueError(f"{options.data!r} is no file; did you mean {KING_JAMES}?")
    return _of_columns(options.data, hub_columns(options.data), options)


def _of_file(path: Path, options: FinetuneOptions) -> Task:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in (*SEPARATORS, ".jsonl", ".txt"):
        raise ValueError(
            f"--data {path} must be a file whose name ends in .txt or .jsonl (for a language "
            "model), or in .csv, .tsv or .jsonl with a column of labels (for a classifier)"
        )
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if suffix == ".txt":
        return "language"
    if suffix in SEPARATORS:
        return "classifier"
    columns = dict.fromkeys(name for _, record in records(path) for name in record)
    if not columns:
        raise ValueError(f"{path}: there are no rows")
    return _of_columns(str(path), list(columns), options)


def _of_columns(source: str, columns: Sequence[str], options: FinetuneOptions) -> Task:
    if options.text_column is not None or options.label_column is not None:
        return "classifier"
    have = ", ".join(map(repr, columns))
    labels = [name for name in columns if name.lower().strip() in LABEL_NAMES]
    answers = any(set(form) <= set(columns) for form in FORMS if form != ("text",))
    if answers and labels:
        raise ValueError(
            f"{source}: the columns {have} hold answers of a language model and labels; {HINT}"
        )
    if answers or list(columns) == ["text"]:
        return "language"
    if labels:
        return "classifier"
    if "text" in columns:
        raise ValueError(
            f"{source}: the columns {have} hold texts, and whether the others are labels is not "
            f"clear; name the labels with --label-column, or {HINT}"
        )
    raise ValueError(
        f"{source}: the columns {have} are neither labelled texts (such as 'text' and 'label') nor "
        "rows for a language model ('messages', 'prompt' and 'completion', or 'text')"
    )
