"""The damage itself: it can be made of any other, and a process that dies of it is told."""

import argparse
import json
import random
import struct
from pathlib import Path

import pytest

import run
from loaders import loaders
from mutate import of_npy, of_tensors

LOADERS = loaders()


def tensor_file(metadata: dict[str, str]) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"__metadata__": metadata, "x": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_damage_is_made_of_damage(name, tmp_path):
    loader, draw = LOADERS[name], random.Random(0)
    sound = loader.seeds(tmp_path)
    for _ in range(20):
        content = draw.choice(sound)
        for _ in range(15):
            content = loader.damaged(content, draw)
        assert isinstance(content, bytes)


@pytest.mark.parametrize("text", ["\ud800", "", "{", "[" * 2000])
def test_damage_is_made_of_strange_metadata(text):
    """Of half a surrogate it once was not, and atheris died in silence."""
    for seed in range(100):
        assert of_tensors(tensor_file({"a": text}), random.Random(seed))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00\xff\xff{", bytes(200)])
def test_damage_is_made_of_what_is_no_array(content):
    for seed in range(100):
        of_npy(content, random.Random(seed))


ENDS = {
    "raise SystemExit(5)": "exit status 5",
    "os.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL",
    "os.kill(os.getpid(), signal.SIGPROF)": "killed by SIGPROF (out of processor time)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_that_dies_is_told_with_what_it_tried(end, tmp_path, monkeypatch, capsys):
    script = tmp_path / "inside.py"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\n"
        "name, output, folder, seed, inputs = sys.argv[1:]\n"
        'Path(folder, "tried").write_bytes(b"the last one")\n'
        'print("line\\n" * 100 + "last words", file=sys.stderr, flush=True)\n' + end
    )
    monkeypatch.setattr(run, "INSIDE", script)
    options = argparse.Namespace(output=tmp_path, seed=0, inputs=1)
    told = run._tried("adapter", options)
    assert told["died"] == ENDS[end]
    assert Path(told["tried"]).read_bytes() == b"the last one"
    assert Path(told["tried"]).parent == tmp_path / "crashes" / "adapter"
    printed = Path(told["printed"]).read_text().splitlines()
    assert len(printed) == run.LAST_LINES and printed[-1] == "last words"
    line = capsys.readouterr().out
    assert all(told[key] in line for key in ("died", "tried", "printed"))
