"""Small files that ask for more than there is: of memory, of depth, of time."""

import gzip
import io
import json
import resource
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from image_files import write_idx
from rankwise.io import json_object
from rankwise.io.json_object import MAX_DEPTH, parsed, read_object, short
from rankwise.io.load_plain import load_plain
from rankwise.io.peft_config import read_config
from rankwise.io.tensor_file import MAX_NAME, read_tensors
from rankwise.recipes import tables
from rankwise.recipes.idx import idx_folder, read_idx
from rankwise.recipes.images import _pixels
from rankwise.recipes.tables import read_rows

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def header(shape: tuple[int, ...]) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def tensor_file(path: Path, header: dict, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "shape", [(2**32 - 1,) * 3, (0, 2**32 - 1, 2**32 - 1), (2**30 + 1,)], ids=str
)
def test_an_idx_header_makes_no_room_for_what_does_not_follow(shape):
    before = peak()
    with pytest.raises(ValueError, match="a.idx: the header says .*; 1 to .* values are read"):
        read_idx(io.BytesIO(header(shape)), "a.idx")
    assert peak() - before < 2**24


def test_of_a_packed_idx_no_more_is_unpacked_than_its_header_promises(tmp_path):
    write_idx(tmp_path)
    bomb = tmp_path / "train-images-idx3-ubyte.gz"
    for plain in tmp_path.glob("train-images*"):
        plain.unlink()
    bomb.write_bytes(gzip.compress(header((2, 4, 4)) + bytes(2**28), 1))
    before = peak()
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz: more values, but the header"):
        idx_folder(tmp_path)
    assert peak() - before < 2**26
    bomb.write_bytes(gzip.compress(header((2, 4, 4)) + bytes(32))[:-6] + b"\xff" * 6)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz"):
        idx_folder(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F8_E8M0", "shape": [1, 2], "data_offsets": [0, 8]}},
        {"a" * (MAX_NAME + 1): {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    ],
    ids=["terabytes", "overflow", "wrong length", "long name"],
)
def test_a_tensor_file_that_promises_too_much_is_refused_by_name(header, tmp_path):
    path = tensor_file(tmp_path / "a.safetensors", header, bytes(8))
    before = peak()
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        read_tensors(path)
    assert peak() - before < 2**26


def test_small_tensors_do_not_make_large_layers(tmp_path):
    """Of empty tensors (0, n) and (n, 0) a layer of n x n would have been made."""
    path = tmp_path / "model.safetensors"
    tensors = {"0.0.weight": torch.empty(0, 2**20), "0.1.weight": torch.empty(2**20, 0)}
    save_file(tensors, path, metadata={"linear": "[]"})
    with pytest.raises(ValueError, match="make no Linear"):
        load_plain(nn.Sequential(nn.Linear(4, 4)), path)
    save_file(
        {"0.0.weight": torch.ones(3, 4), "0.1.weight": torch.ones(4, 2)}, path, {"linear": "[]"}
    )
    with pytest.raises(ValueError, match=r"\(3, 4\), \(4, 2\) make no Linear"):
        load_plain(nn.Sequential(nn.Linear(4, 4)), path)


def test_json_is_bounded_in_depth_and_size(tmp_path, monkeypatch):
    at_most = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parsed(f'{{"a": {at_most}}}', "x")
    for levels in (MAX_DEPTH, 10**5):
        with pytest.raises(ValueError, match="x is damaged"):
            parsed('{"a": ' + "[" * levels + "]" * levels + "}", "x")
    for text in ("[1]", "1", "null", '{"a": 1, "a": 2}', '{"a": ' + "9" * 5000 + "}", b"\xff{}"):
        with pytest.raises(ValueError, match="x is damaged"):
            parsed(text, "x")
    large = tmp_path / "metrics.json"
    large.write_bytes(b" " * (2**20 + 1))
    monkeypatch.setattr(json_object, "MAX_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"metrics\.json is damaged: more than 1 MiB"):
        read_object(large)


def test_messages_are_short_whatever_a_file_holds():
    assert len(short("x" * 10**6)) == 80 and short(None) == "None"
    assert short(10**5000) == "a int too long to print"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_no_line_is_read_without_end(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    path = tmp_path / name
    path.write_text("text,label\n" + "x" * 5000 + "\n")
    with pytest.raises(ValueError, match=r"line 2: more than 1,000 characters|line 1 is damaged"):
        read_rows(path, None, None)


def test_a_field_without_end_is_refused_by_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"' + "x\n" * 10**5)
    with pytest.raises(ValueError, match=r"a\.csv, line 2: field larger than field limit"):
        read_rows(path, None, None)


@pytest.mark.parametrize(
    "key",
    [
        "a{99999999999999999999}",
        "(" * 900 + ")" * 900,
        "(?i)a",
        "(a+)+b",
        "a" * 2000,
        "a*" * 6,
        "(",
    ],
    ids=["overflow", "deep", "flags", "repeated group", "long", "many", "open"],
)
def test_patterns_that_python_cannot_take_are_refused_by_their_field(key, tmp_path):
    config = {**LORA, "rank_pattern": {key: 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="adapter_config.json: 'rank_pattern' has the key"):
        read_config(tmp_path)


def test_a_pattern_that_would_match_for_hours_is_refused_at_once(tmp_path):
    config = {**LORA, "alpha_pattern": {".*.*.*.*.*x": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    scales = read_config(tmp_path)
    start = time.process_time()
    with pytest.raises(ValueError, match="may match 'aaa.*for hours"):
        scales.scale("a" * 300)
    assert scales.scale("ax") == 1.0
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("field", ["task_type", "base_model_name_or_path", "use_rslora"])
def test_fields_of_another_type_are_refused(field, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({**LORA, field: ["false"]}))
    with pytest.raises(ValueError, match=f"adapter_config.json: '{field}' must be"):
        read_config(tmp_path)


def test_pictures_are_known_by_content_and_size(tmp_path):
    from PIL import Image

    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with pytest.raises(ValueError, match=r"a\.png is no whole picture in PNG or JPEG"):
        _pixels(path, None)
    Image.new("1", (5000, 4000)).save(path)
    assert path.stat().st_size < 10**4
    with pytest.raises(ValueError, match=r"a\.png is 5000x4000; 16,777,216 pixels are the most"):
        _pixels(path, None)
    Image.new("L", (3, 2)).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.png is no whole picture"):
        _pixels(path, None)
