"""Folders of runs, the words of a command line, and patterns of layers."""

import contextlib
import io
import json
import os
from pathlib import Path

from torch import nn

from loader import SEPARATOR, Loader
from mutate import of_bytes, of_json, of_lines
from of_models import network
from rankwise.cli.main import call, commands
from rankwise.recipes.folder import OPTIONS, prepared
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.run_findings import findings_of
from rankwise.recipes.train_options import TrainOptions
from rankwise.report.page.run import read_runs
from rankwise.report.page.write import page_of
from rankwise.surgery.select import choose

CORPUS = Path(__file__).parent / "corpus"
HARMLESS = ("report", "convert")
RUN_FILES = ("options.json", "run.json", "metrics.json", "history.jsonl", "table.md")
AS_JSON = (of_json, of_json, of_json, of_lines, of_lines)


def run_seeds(folder: Path) -> list[bytes]:
    found = []
    for name in ("finetune", "attack"):
        parts = [(CORPUS / "run" / f"{name}-{file}").read_bytes() for file in RUN_FILES]
        found.append(SEPARATOR.join(parts))
    return found


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


LOADERS = (
    Loader("doctor-run", run_seeds, doctor_run, AS_JSON),
    Loader("report", run_seeds, report_run, AS_JSON),
    Loader("options", options_seeds, read_options, (of_json,)),
    Loader("pattern", pattern_seeds, read_pattern, (of_bytes,), named=False),
    Loader("arguments", argument_seeds, read_arguments, (of_lines,), named=False),
)
