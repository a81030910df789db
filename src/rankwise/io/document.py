"""What a rankwise file holds: tensors by name and one JSON document in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.io.tensor_file import read_tensors, write_tensors

METADATA_KEY = "rankwise"


class Document(NamedTuple):
    """Content of a file; `path` is for error messages."""

    path: Path
    tensors: dict[str, Tensor]
    content: dict[str, Any]


def write_document(
    path: Path,
    tensors: Mapping[str, Tensor],
    content: Mapping[str, Any],
    *,
    format: str,
    version: int,
) -> None:
    """Write atomically; `format` and `version` are checked by `read_document`."""
    text = json.dumps({"format": format, "version": version, **content})
    write_tensors(path, tensors, {METADATA_KEY: text})


def read_document(path: Path, *, format: str, version: int) -> Document:
    """Read a file of that format and version.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is damaged, not safetensors, not rankwise's, or of another
            format.
    """
    tensors, metadata = read_tensors(path)
    return Document(path, tensors, _content(path, metadata, format, version))


def told_of(path: Path) -> dict[str, Any]:
    """The document of a file alone, without its tensors, unverified; ValueError if it has none."""
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})[METADATA_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} tells nothing of itself: {error}") from error
    return content if isinstance(content, dict) else {}


def _content(path: Path, metadata: Mapping[str, str], format: str, version: int) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by rankwise: no {METADATA_KEY!r} in its metadata")
    try:
        content = json.loads(metadata[METADATA_KEY], object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {METADATA_KEY!r} in the metadata is broken: {error}") from error
    if not isinstance(content, dict) or content.get("format") != format:
        got = content.get("format") if isinstance(content, dict) else content
        raise ValueError(f"{path} has format {got!r}, expected {format!r}")
    if content.get("version") != version:
        raise ValueError(
            f"{path} has version {content.get('version')!r} of {format!r}; this rankwise reads "
            f"version {version}"
        )
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"entry {twice!r} occurs twice")
    return result
