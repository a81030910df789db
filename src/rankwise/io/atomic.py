"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from rankwise.distributed.sharded import is_sharded
from rankwise.io.safetensor import parts_of


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; at the end what is there replaces `path`.

    If the block raises, `path` is as it was and the temporary file is gone. A killed process
    leaves a file named `.<name>.<random>.tmp` at most.

    Raises:
        IsADirectoryError: if there is a folder of that name.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers leave mode 600; what is saved is as readable as any new file.
        temporary.chmod(mode)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file, atomically; tensors are copied to the CPU and made contiguous.

    Raises ValueError for a tensor that is sharded over processes.
    """
    sharded = next((name for name, t in tensors.items() if is_sharded(t)), None)
    if sharded is not None:
        raise ValueError(
            f"{path}: {sharded!r} is sharded over processes, and this one has a part of it. Save "
            "by `rankwise.save` or `rankwise.save_training`, which gather, and load that in a "
            "single process"
        )
    own = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for part in parts_of(own, {"format": "pt", **metadata}):
            file.write(part)


def write_text(path: Path, text: str) -> None:
    """One text file (UTF-8), atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
