"""Where a file should be there is a pipe without a writer, or a link to a device without an end."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from pages import ROOT
from rankwise.io.ordinary import ordinary
from rankwise.recipes.folder import prepared
from rankwise.recipes.images import _pixels
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.run_findings import findings_of
from rankwise.recipes.tables import read_dataset
from rankwise.report.page.run import read_runs

SECONDS = 5
RUN = ROOT / "fuzz" / "corpus" / "run"
FILES = ("options.json", "run.json", "metrics.json", "history.jsonl", "table.md")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


kinds = pytest.mark.parametrize("put", [pipe, device])


@pytest.fixture(autouse=True)
def in_time():
    """What waits for a writer would wait for ever."""

    def late(number, frame):
        raise TimeoutError(f"not done within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tmp_path):
    for name in FILES:
        shutil.copy(RUN / f"finetune-{name}", tmp_path / name)
    return tmp_path


@kinds
@pytest.mark.parametrize("name", FILES)
def test_a_report_of_it_is_refused_by_name(run, put, name):
    (run / name).unlink()
    put(run / name)
    with pytest.raises(ValueError, match=f"{run / name} is a pipe or a device"):
        read_runs([run])


@kinds
@pytest.mark.parametrize("name", FILES[:-1])
def test_the_doctor_names_it(run, put, name):
    (run / name).unlink()
    put(run / name)
    told = " ".join(f"{finding.seen}" for finding in findings_of(run))
    assert f"{name} is a pipe or a device" in told


@kinds
@pytest.mark.parametrize("name", ["options.json", "SHA256SUMS"])
def test_going_on_with_it_is_refused_by_name(tmp_path, put, name):
    (tmp_path / "options.json").write_text(json.dumps(FinetuneOptions().to_json()))
    (tmp_path / name).unlink(missing_ok=True)
    put(tmp_path / name)
    asked = FinetuneOptions(output=tmp_path, resume=True)
    if put is device:
        with pytest.raises(ValueError, match=f"{name} is a link out of"):
            prepared(asked)
    else:
        with pytest.raises(ValueError, match=f"{name} is a pipe or a device"):
            prepared(asked)


@kinds
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_data_are_refused_by_name(tmp_path, put, name):
    path = tmp_path / name
    put(path)
    columns = {"text_column": None, "label_column": None, "eval_path": None}
    with pytest.raises(ValueError, match=f"{path} is a pipe or a device"):
        read_dataset(path, **columns, eval_fraction=0.3, seed=0)


@kinds
def test_a_picture_is_refused_by_name(tmp_path, put):
    path = tmp_path / "a.png"
    put(path)
    with pytest.raises(ValueError, match=f"{path} is a pipe or a device"):
        _pixels(path, None)


def test_files_and_folders_are_opened_as_ever(tmp_path):
    (tmp_path / "file").write_text("x")
    with open(tmp_path / "file", opener=ordinary) as file:
        assert file.read() == "x"
    with pytest.raises(IsADirectoryError):
        open(tmp_path, opener=ordinary)
    with pytest.raises(FileNotFoundError):
        open(tmp_path / "none", opener=ordinary)
