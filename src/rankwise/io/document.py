"""What a rankwise file holds: tensors by name and one JSON document in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rankwise.io.json_object import parsed, short
from rankwise.io.tensor_file import opened, read_tensors, write_tensors

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
    with opened(path) as file:
        metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} tells nothing of itself: no {METADATA_KEY!r} in its metadata")
    return parsed(metadata[METADATA_KEY], f"{path}: {METADATA_KEY!r} in the metadata")


def _content(path: Path, metadata: Mapping[str, str], format: str, version: int) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by rankwise: no {METADATA_KEY!r} in its metadata")
    content = parsed(metadata[METADATA_KEY], f"{path}: {METADATA_KEY!r} in the metadata")
    if content.get("format") != format:
        raise ValueError(f"{path} has format {short(content.get('format'))}, expected {format!r}")
    if content.get("version") != version:
        raise ValueError(
            f"{path} has version {short(content.get('version'))} of {format!r}; this rankwise "
            f"reads version {version}"
        )
    return content
