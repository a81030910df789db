"""What reads files of others: how a sound one looks, how it is damaged, and who reads it.

A loader gets bytes and an empty folder. It must return, or raise `ValueError`, `TypeError` or
`OSError` with a message that names the file (for arguments: that is not empty).
"""

import contextlib
import copy
import gzip
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import rankwise as rw
from mutate import Mutation, of_bytes, of_json, of_lines, of_tensors
from rankwise.cli.main import call, commands
from rankwise.io.load_plain import load_plain
from rankwise.io.plain import save_plain
from rankwise.io.training import load_training, save_training
from rankwise.recipes import idx
from rankwise.recipes.folder import OPTIONS, prepared
from rankwise.recipes.images import _pixels
from rankwise.recipes.language_files import read_language, read_paragraphs
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.run_findings import findings_of
from rankwise.recipes.tables import read_dataset
from rankwise.recipes.train_options import TrainOptions
from rankwise.report.page.run import read_runs
from rankwise.report.page.write import page_of
from rankwise.surgery.select import choose

SEPARATOR = b"\x1e\n"
"""Between the files of a folder."""


HARMLESS = ("report", "convert")


class Loader(NamedTuple):
    """A reader, and what it is tried with."""

    name: str
    seeds: Callable[[Path], list[bytes]]
    """Sound contents; the folder is to work in."""
    read: Callable[[bytes, Path], object]
    mutations: tuple[Mutation, ...]
    """Of each file of a folder its own; the last of all that follow."""
    named: bool = True
    """Whether it is a file, which messages have to name."""

    def damaged(self, content: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.05:
            return of_bytes(content, draw)
        parts = content.split(SEPARATOR) if len(self.mutations) > 1 else [content]
        at = draw.randrange(len(parts))
        parts[at] = self.mutations[min(at, len(self.mutations) - 1)](parts[at], draw)
        return SEPARATOR.join(parts)


@cache
def network() -> nn.Sequential:
    """Plain, a few numbers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))


@cache
def adapted() -> nn.Sequential:
    """Trained by two steps, so that no factor is zero."""
    model = copy.deepcopy(network())
    rw.adapt_(model, rank=2, select=["0"], train=["2"])
    optimizer = rw.Optimizer(model)
    for _ in range(2):
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def training() -> tuple[nn.Module, Any, Any]:
    model = copy.deepcopy(network())
    rw.adapt_(model, rank=2, select=["0"], train=["2"])
    optimizer = rw.Optimizer(model)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def adapter_seeds(folder: Path) -> list[bytes]:
    return [rw.save(adapted(), folder).read_bytes()]


def read_adapter_file(content: bytes, folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(content)
    rw.load(copy.deepcopy(network()), folder)


def checkpoint_seeds(folder: Path) -> list[bytes]:
    model, optimizer, scheduler = training()
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    scheduler.step()
    path = folder / "checkpoint.safetensors"
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    save_training(path, **parts, progress={"step": 1})
    return [path.read_bytes()]


def read_checkpoint(content: bytes, folder: Path) -> None:
    path = folder / "checkpoint.safetensors"
    path.write_bytes(content)
    model, optimizer, scheduler = training()
    load_training(path, model=model, optimizer=optimizer, scheduler=scheduler)


def peft_seeds(folder: Path) -> list[bytes]:
    rw.export_lora(adapted(), folder, compact=True)
    names = ("adapter_config.json", "adapter_model.safetensors")
    config, tensors = ((folder / name).read_bytes() for name in names)
    patterns = config.replace(b'"alpha_pattern": {}', b'"alpha_pattern": {"0": 3, "[a-z]+.x": 1}')
    return [SEPARATOR.join((config, tensors)), SEPARATOR.join((patterns, tensors))]


def read_peft_folder(content: bytes, folder: Path) -> None:
    config, _, tensors = content.partition(SEPARATOR)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    rw.load(copy.deepcopy(network()), folder)


def plain_seeds(folder: Path) -> list[bytes]:
    model = copy.deepcopy(network())
    rw.factorize_(model, rank=1)
    save_plain(rw.shrink(model), folder)
    return [(folder / "model.safetensors").read_bytes()]


def read_plain(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    try:
        load_plain(network(), folder / "model.safetensors")
    except RuntimeError as error:
        # By its documentation, of torch's `load_state_dict`.
        raise ValueError(f"model.safetensors: {error}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"model.safetensors: {error}") from error
        raise


def doctor_adapter(content: bytes, folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(content)
    findings_of(folder / "adapter.safetensors")


def doctor_lora(content: bytes, folder: Path) -> None:
    config, _, tensors = content.partition(SEPARATOR)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    findings_of(folder)


RUN_FILES = ("options.json", "run.json", "metrics.json", "history.jsonl", "table.md")
AS_JSON = (of_json, of_json, of_json, of_lines, of_lines)


def run_seeds(folder: Path) -> list[bytes]:
    found = []
    for name in ("finetune", "attack"):
        parts = [(CORPUS / "run" / f"{name}-{file}").read_bytes() for file in RUN_FILES]
        found.append(SEPARATOR.join(parts))
    return found


CORPUS = Path(__file__).parent / "corpus"


def _run_folder(content: bytes, folder: Path) -> None:
    for name, part in zip(RUN_FILES, content.split(SEPARATOR), strict=False):
        (folder / name).write_bytes(part)


def report_run(content: bytes, folder: Path) -> None:
    _run_folder(content, folder)
    page_of(read_runs([folder]))


def doctor_run(content: bytes, folder: Path) -> None:
    _run_folder(content, folder)
    findings_of(folder)


def options_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(o.to_json()).encode() for o in (FinetuneOptions(), TrainOptions())]


def read_options(content: bytes, folder: Path) -> None:
    (folder / OPTIONS).write_bytes(content)
    kind = TrainOptions if b'"keep"' in content else FinetuneOptions
    prepared(kind(output=folder, resume=True))


def table_seeds(folder: Path) -> list[bytes]:
    return [b'text,label\ngood film,1\n"a ""bad"", long one",0\nfine,1\nno,0\n']


def tab_seeds(folder: Path) -> list[bytes]:
    return [
        content.replace(b"text,label", b"text\tlabel").replace(b",1", b"\t1").replace(b",0", b"\t0")
        for content in table_seeds(folder)
    ]


def _table(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        columns = {"text_column": None, "label_column": None, "eval_path": None}
        read_dataset(path, **columns, eval_fraction=0.3, seed=0)

    return read


def jsonl_seeds(folder: Path) -> list[bytes]:
    rows = (b'{"text": "good film", "label": 1}', b'{"text": "bad", "label": 0.0}')
    return [b"\n".join(rows * 3)]


def language_seeds(folder: Path) -> list[bytes]:
    turns = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    forms = (b'{"messages": %b}' % turns, b'{"prompt": "a", "completion": "b"}', b'{"text": "a"}')
    return [b"\n".join([form] * 3) for form in forms]


def read_rows(content: bytes, folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    read_language(path)


def text_seeds(folder: Path) -> list[bytes]:
    return [b"In the beginning\n\nwas the word,\r\nand more.\n", "\ufeffüber\n".encode()]


def read_text_file(content: bytes, folder: Path) -> None:
    path = folder / "notes.txt"
    path.write_bytes(content)
    read_paragraphs(path)


def idx_seeds(folder: Path) -> list[bytes]:
    images = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 4) + bytes(range(24))
    return [images, struct.pack(">HBBI", 0, 8, 1, 5) + bytes(5)]


def read_plain_idx(content: bytes, folder: Path) -> None:
    idx.read_idx(io.BytesIO(content), "a.idx")


def packed_idx_seeds(folder: Path) -> list[bytes]:
    return [gzip.compress(content, mtime=0) for content in idx_seeds(folder)]


def read_packed_idx(content: bytes, folder: Path) -> None:
    (folder / "name.gz").write_bytes(content)
    idx._read(folder, "name")


def of_gzip(content: bytes, draw: random.Random) -> bytes:
    """Damage inside, or of the archive."""
    try:
        inner = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return of_bytes(content, draw)
    damaged = of_bytes(inner, draw) if draw.random() < 0.7 else inner + bytes(10**5)
    return of_bytes(content, draw) if draw.random() < 0.3 else gzip.compress(damaged, 1, mtime=0)


def picture_seeds(folder: Path) -> list[bytes]:
    from PIL import Image

    found = []
    for form in ("PNG", "JPEG"):
        file = io.BytesIO()
        Image.frombytes("RGB", (4, 3), bytes(range(36))).save(file, form)
        found.append(file.getvalue())
    return found


def read_picture(content: bytes, folder: Path) -> None:
    path = folder / "a.png"
    path.write_bytes(content)
    _pixels(path, None)


def pattern_seeds(folder: Path) -> list[bytes]:
    return [b"encoder.*.query", b"0", b"[a-c]?*", b"*.[!0-9]"]


def read_pattern(content: bytes, folder: Path) -> None:
    layers = {f"encoder.{i}.{part}": nn.Linear(1, 1) for i in range(12) for part in ("q", "value")}
    choose(content.decode("utf-8", "replace"), layers, network(), argument="select")


def argument_seeds(folder: Path) -> list[bytes]:
    lines = (
        "report\n{folder}\n--title\na b\n--json\nx.json",
        "report\n--output\nx.html\n{folder}",
        "convert\n{folder}\n{folder}/out\n--max-rank\n2\n--tolerance\n1e-3\n--compact",
        "--version",
    )
    return [line.encode() for line in lines]


def read_arguments(content: bytes, folder: Path) -> None:
    """Of the commands that begin no job, in the folder, where they may write."""
    known = {name: command for name, command in commands().items() if name in HARMLESS}
    text = content.decode("utf-8", "replace").replace("{folder}", str(folder)).replace("\x00", "")
    told = io.StringIO()
    os.chdir(folder)
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            call(known, text.split("\n") if text else [])
        except SystemExit as end:
            if end.code not in (0, 2):
                raise RuntimeError(f"ended with {end.code!r}") from end
        finally:
            os.chdir(CORPUS)


def loaders() -> dict[str, Loader]:
    found = (
        Loader("adapter", adapter_seeds, read_adapter_file, (of_tensors,)),
        Loader("checkpoint", checkpoint_seeds, read_checkpoint, (of_tensors,)),
        Loader("peft", peft_seeds, read_peft_folder, (of_json, of_tensors)),
        Loader("plain", plain_seeds, read_plain, (of_tensors,)),
        Loader("doctor-adapter", adapter_seeds, doctor_adapter, (of_tensors,)),
        Loader("doctor-lora", peft_seeds, doctor_lora, (of_json, of_tensors)),
        Loader("doctor-run", run_seeds, doctor_run, AS_JSON),
        Loader("report", run_seeds, report_run, AS_JSON),
        Loader("options", options_seeds, read_options, (of_json,)),
        Loader("csv", table_seeds, _table("a.csv"), (of_lines,)),
        Loader("tsv", tab_seeds, _table("a.tsv"), (of_lines,)),
        Loader("jsonl", jsonl_seeds, _table("a.jsonl"), (of_lines,)),
        Loader("language", language_seeds, read_rows, (of_lines,)),
        Loader("text", text_seeds, read_text_file, (of_bytes,)),
        Loader("idx", idx_seeds, read_plain_idx, (of_bytes,)),
        Loader("idx-gz", packed_idx_seeds, read_packed_idx, (of_gzip,)),
        Loader("picture", picture_seeds, read_picture, (of_bytes,)),
        Loader("pattern", pattern_seeds, read_pattern, (of_bytes,), named=False),
        Loader("arguments", argument_seeds, read_arguments, (of_lines,), named=False),
    )
    return {loader.name: loader for loader in found}
