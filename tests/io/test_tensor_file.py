"""A file that was damaged is refused by name, wherever the damage is."""

import json
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from foreign_files import save_file
from rankwise.io.tensor_file import CHECKSUM, checksum, read_tensors, write_tensors

METADATA = {"rankwise": json.dumps({"é": ['"', "\\", 1.5]}), "b": "ü\n"}


def written(folder, draw):
    path = folder / "t.safetensors"
    tensors = {
        "Ä.U": torch.randn(3, 2, generator=draw),
        "n": torch.tensor(3),
        "none": torch.empty(0, 4),
        "b": torch.ones(5, dtype=torch.bfloat16),
    }
    write_tensors(path, tensors, METADATA)
    return path, tensors


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_what_was_written_is_read(tmp_path, draw):
    path, tensors = written(tmp_path, draw)
    found = read_tensors(path)
    assert found.metadata == {"format": "pt", **METADATA}
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], t) for name, t in tensors.items())


def test_every_single_flipped_bit_is_found(tmp_path, draw):
    path, _ = written(tmp_path, draw)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        path.write_bytes(flipped(data, bit))
        with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
            read_tensors(path)


def test_every_length_but_the_whole_is_found(tmp_path, draw):
    path, _ = written(tmp_path, draw)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
            read_tensors(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
        read_tensors(path)


def test_a_file_of_another_program_has_no_checksum_and_is_taken(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    assert read_tensors(path).metadata == {}
    save_file({"a": torch.ones(2)}, path, metadata={"format": "pt", "of": "somebody"})
    assert read_tensors(path).metadata == {"format": "pt", "of": "somebody"}


def test_a_program_that_writes_all_of_it_anew_keeps_it_valid(tmp_path, draw):
    path, _ = written(tmp_path, draw)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(dict(reversed(tensors.items())), path, metadata=dict(reversed(metadata.items())))
    read_tensors(path)
    save_file(tensors | {"n": torch.tensor(4)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="not what was written, by its checksum"):
        read_tensors(path)


def test_it_is_of_names_types_shapes_and_bytes():
    a = torch.tensor([1.0, 2.0])
    told = {
        checksum(tensors, metadata)
        for tensors, metadata in [
            ({"a": a}, {}),
            ({"b": a}, {}),
            ({"a": a[None]}, {}),
            ({"a": a.view(torch.int32)}, {}),
            ({"a": a.flip(0)}, {}),
            ({"a": a}, {"a": ""}),
            ({"a": a, "b": a[:0]}, {}),
        ]
    }
    assert len(told) == 7


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 3), max_size=3), max_size=4))
def test_names_and_shapes_of_any_kind_come_back(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("any") / "t.safetensors"
    shapes = {name: s for name, s in shapes.items() if name not in ("", "__metadata__")}
    tensors = {name: torch.full(shape, 2.5) for name, shape in shapes.items()}
    write_tensors(path, tensors, {})
    found = read_tensors(path).tensors
    assert {name: list(t.shape) for name, t in found.items()} == shapes


def test_its_key_in_the_metadata_is_taken(tmp_path):
    with pytest.raises(ValueError, match=f"'{CHECKSUM}' in the metadata is for the checksum"):
        write_tensors(tmp_path / "x.safetensors", {}, {CHECKSUM: "mine"})
    assert not list(tmp_path.iterdir())


MEMORY = """
import resource, sys, torch
from pathlib import Path
from rankwise.io.tensor_file import checksum, read_tensors, write_tensors
megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
path, tensors = Path(sys.argv[1]), {f"{i}": torch.ones(1_000_000) for i in range(20)}
write_tensors(path, {"a": torch.ones(9)}, {})
before = megabytes()
write_tensors(path, tensors, {})
checksum(tensors, {})
print(megabytes() - before)
"""


def test_it_is_taken_without_a_copy(tmp_path):
    run = [sys.executable, "-c", MEMORY, str(tmp_path / "x.safetensors")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20  # Of 80 megabytes.


def test_a_folder_and_nothing_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_tensors(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_tensors(tmp_path)


def test_damage_in_many_places_is_found(tmp_path, draw):
    path, _ = written(tmp_path, draw)
    data, drawn = path.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = data
        for bit in drawn.sample(range(8 * len(data)), 9):
            changed = flipped(changed, bit)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
            read_tensors(path)


def test_what_was_read_does_not_change_or_end_with_its_file(tmp_path, draw):
    path, tensors = tmp_path / "t.safetensors", {"a": torch.randn(3, generator=draw)}
    tensors |= {f"t{i}": torch.randn(i, 5, generator=draw) for i in range(1, 9)}
    write_tensors(path, tensors, {})
    found = read_tensors(path).tensors
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(0)
    for name, t in tensors.items():
        assert torch.equal(found[name], t)
        # Where torch puts its own, so that sums are taken in the same order.
        assert found[name].data_ptr() % 64 == 0
