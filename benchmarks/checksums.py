"""What the checksum of a file costs, beside writing and reading it."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tables import table

from rankwise.io.tensor_file import checksum, read_tensors, write_tensors


@dataclass(frozen=True)
class Options:
    """Time files of tensors."""

    output: Path | None = None
    """Folder for the file [a temporary one]."""
    megabytes: int = 100
    rounds: int = 15


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Of the processor, the least of all rounds: what else runs on a machine only adds."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    tensors = {f"t{i}": torch.randn(250_000) for i in range(options.megabytes)}
    with tempfile.TemporaryDirectory() as temporary:
        file = (options.output or Path(temporary)) / "t.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = seconds(lambda: write_tensors(file, tensors, {}), options.rounds)
        read = seconds(lambda: read_tensors(file), options.rounds)
    own = seconds(lambda: checksum(tensors, {}), options.rounds)
    rows = [["", "seconds of the processor", "of it the checksum"]]
    for name, all_of_it in (("written, flushed to the disk", whole), ("read, checked", read)):
        rows.append([name, f"{all_of_it:.3f}", f"{own:.3f}, {own / all_of_it:.0%}"])
    print(table(rows))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
