"""SHA256SUMS: what the run left, and what has become of it."""

import shutil
import subprocess

import pytest

from image_files import write_idx
from rankwise.check import Verdict
from rankwise.cli.main import main
from rankwise.recipes.sums import sums_findings, write_sums


@pytest.fixture
def folder(tmp_path):
    """Files as a run leaves them."""
    folder = tmp_path / "run"
    (folder / "within").mkdir(parents=True)
    for name in ("metrics.json", "within/a b.safetensors", "ü.txt"):
        (folder / name).write_text(name)
    for name in ("report.html", ".a.0123abcd.tmp"):
        (folder / name).write_text("not of the run")
    write_sums(folder)
    return folder


def told(folder):
    (finding,) = sums_findings(folder)
    return finding.verdict, finding.seen


def test_a_run_as_it_was_left_is_fine(folder):
    assert told(folder) == (Verdict.OK, "3 files are what the run left")
    (folder / "report.html").write_text("anew")
    assert told(folder)[0] is Verdict.OK


def test_they_are_read_by_other_programs(folder):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum here")
    check = ["sha256sum", "--strict", "--check", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 0
    (folder / "ü.txt").write_text("other")
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


def test_what_changed_and_what_is_missing_are_named(folder):
    (folder / "ü.txt").unlink()
    assert told(folder) == (Verdict.WARNING, "1 files are missing: ü.txt")
    (folder / "within/a b.safetensors").write_text("other")
    assert told(folder) == (
        Verdict.FAULT,
        "1 files are not what the run left: within/a b.safetensors; missing: ü.txt",
    )


@pytest.mark.parametrize("line", ["x", f"{64 * '0'}  ../metrics.json", f"{64 * '0'}  /etc/hosts"])
def test_a_line_that_is_none_is_damage(folder, line):
    file = folder / "SHA256SUMS"
    file.write_text(f"{file.read_text()}{line}\n")
    assert told(folder) == (Verdict.FAULT, "1 files are not what the run left: SHA256SUMS")


def test_a_run_without_sums_is_not_blamed(folder):
    (folder / "SHA256SUMS").unlink()
    assert sums_findings(folder) == []


def test_a_run_ends_with_them_and_a_new_one_has_its_own(tmp_path, capsys):
    data, folder = write_idx(tmp_path / "data"), tmp_path / "run"
    asked = ["train", "--data", str(data), "--keep", "0.3", "--steps", "3", "--no-dense"]
    asked += ["--output", str(folder)]
    assert main(asked) == 0
    before = (folder / "SHA256SUMS").read_text()
    names = {line.split("  ", 1)[1] for line in before.splitlines()}
    assert {"metrics.json", "history.jsonl", "checkpoints/step-000003.safetensors"} <= names
    assert told(folder)[0] is Verdict.OK
    history = folder / "history.jsonl"
    history.write_text(history.read_text().replace("1", "2", 1))
    capsys.readouterr()
    main(["doctor", str(folder)])
    assert "history.jsonl" in capsys.readouterr().out
    assert main([*asked, "--overwrite", "--seed", "1"]) == 0
    assert told(folder)[0] is Verdict.OK and (folder / "SHA256SUMS").read_text() != before
