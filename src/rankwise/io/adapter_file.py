"""Files of adapters, without a model: rankwise's own, and folders of PEFT."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.io.document import read_document, write_document
from rankwise.io.path import given_path
from rankwise.io.peft_config import CONFIG, is_peft
from rankwise.io.peft_folder import PICKLE, WEIGHTS, read_peft
from rankwise.io.stored import Stored, stored

FILE_NAME = "adapter.safetensors"
FORMAT = "rankwise-adapter"
VERSION = 1


def adapter_path(folder: str | Path) -> Path:
    """The file that `folder` stands for, there or not: itself, or the one in it."""
    path = given_path(folder)
    return path if path.suffix == ".safetensors" or path.is_file() else path / FILE_NAME


def write_adapter(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write rankwise's file, atomically."""
    write_document(path, tensors, content, format=FORMAT, version=VERSION)


def read_adapter(folder: str | Path) -> Stored:
    """What rankwise or PEFT saved; a folder that holds both is rankwise's.

    Raises FileNotFoundError and ValueError, naming file and entry.
    """
    path = given_path(folder)
    if path.is_file() and path.name in (WEIGHTS, PICKLE, CONFIG):
        path = path.parent
    file = adapter_path(path)
    if not file.is_file():
        if is_peft(path):
            return read_peft(path)
        raise FileNotFoundError(_nothing(path))
    document = read_document(file, format=FORMAT, version=VERSION)
    if document.content.get("layers") == {}:
        raise ValueError(f"{document.path}: 'layers' of the metadata must name layers, got none")
    return stored(document.path, document.tensors, document.content)


def _nothing(path: Path) -> str:
    if path.suffix == ".safetensors":
        return f"there is no file {path}"
    if not path.is_dir():
        near = difflib.get_close_matches(path.name, _folders_beside(path), n=2)
        hint = f"; did you mean {' or '.join(repr(str(path.parent / n)) for n in near)}?"
        return f"there is no folder {path}{hint if near else ''}"
    told = f"there is no file {path / FILE_NAME}, and no {CONFIG} of PEFT beside it"
    if (path / WEIGHTS).is_file():
        return f"{told}: {WEIGHTS} is there, but {CONFIG}, which holds its scale, is missing"
    inner = sorted(p.parent.name for n in (FILE_NAME, CONFIG) for p in path.glob(f"*/{n}"))
    hint = f". Did you mean {' or '.join(repr(str(path / name)) for name in inner[:4])}?"
    return told + (hint if inner else "")


def _folders_beside(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*/")] if path.parent.is_dir() else []
