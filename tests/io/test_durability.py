"""What the disk refuses is told, and leaves every file as it was."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from rankwise.io.atomic import (
    append_text,
    make_folder,
    remove_temporaries,
    replacing,
    replacing_together,
    write_text,
)
from rankwise.io.tensor_file import read_tensors, write_tensors

NOBODY = 65534


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


LIMITED = """
import resource, sys, torch
from pathlib import Path
from rankwise.io.atomic import append_text, write_text
from rankwise.io.tensor_file import write_tensors
folder = Path(sys.argv[1])
# What a full disk does, without one: the system refuses to write beyond these bytes.
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (
    lambda: write_tensors(folder / "t.safetensors", {"a": torch.zeros(9000)}, {}),
    lambda: write_text(folder / "t.txt", "new" * 9000),
    lambda: append_text(folder / "t.jsonl", "new" * 9000),
):
    try:
        write()
    except OSError as error:
        print(type(error).__name__, error.errno, error.filename, error.strerror)
"""


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)}, {})
    write_text(tmp_path / "t.txt", "old")
    append_text(tmp_path / "t.jsonl", "old\n")
    run = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    told = f"could not be written ({os.strerror(errno.EFBIG)}); what was there is as it was"
    assert done.stdout.splitlines() == [
        f"OSError {errno.EFBIG} {tmp_path / name} {told}"
        for name in ("t.safetensors", "t.txt", "t.jsonl")
    ]
    assert torch.equal(read_tensors(tmp_path / "t.safetensors").tensors["a"], torch.ones(2))
    assert (tmp_path / "t.txt").read_text() == "old"
    assert (tmp_path / "t.jsonl").read_text() == "old\n"
    assert names(tmp_path) == ["t.jsonl", "t.safetensors", "t.txt"]


def test_a_folder_that_may_not_be_written_to_is_told():
    """The superuser may write anywhere, so that it has to become somebody else first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "kept"
        folder.mkdir()
        Path(name).chmod(0o755)
        (folder / "t.txt").write_text("old")
        folder.chmod(0o555)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            if os.getuid() == 0:
                os.setuid(NOBODY)
            for act in (write_text, append_text):
                try:
                    act(folder / "t.txt" if act is write_text else folder / "new", "new")
                except PermissionError as error:
                    os.write(write, f"{error}\n".encode())
            os._exit(0)
        os.close(write)
        with open(read, encoding="utf-8") as told:
            lines = told.read().splitlines()
        os.waitpid(child, 0)
        folder.chmod(0o755)
        assert len(lines) == 2
        for line, file in zip(lines, ("t.txt", "new"), strict=True):
            assert "could not be written (Permission denied); what was there is as it was" in line
            assert str(folder / file) in line
        assert names(folder) == ["t.txt"] and (folder / "t.txt").read_text() == "old"


def test_a_folder_that_vanishes_is_told(tmp_path):
    folder = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match=r"could not be written \(No such file.*t\.txt"):
        with replacing(folder / "t.txt") as temporary:
            temporary.write_text("new")
            temporary.unlink()
            folder.rmdir()
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"could not be written .*t\.jsonl"):
        append_text(folder / "t.jsonl", "new")


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match=r"could not be written .*t\.txt"):
        write_text(tmp_path / "a" / "t.txt", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_files_that_belong_together_are_replaced_together(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for old in (True, False):
        with pytest.raises(KeyboardInterrupt), replacing_together([one, two]) as (first, second):
            first.write_text("new")
            second.write_text("new")
            raise KeyboardInterrupt
        assert names(tmp_path) == ([] if old else ["one", "two"])
        if old:
            with replacing_together([one, two]) as (first, second):
                first.write_text("old")
                second.write_text("old")
    assert one.read_text() == two.read_text() == "old"


def pair(folder: Path) -> tuple[Path, Path]:
    one, two = folder / "one", folder / "two"
    one.write_text("old")
    two.write_text("old")
    return one, two


def replace_both(one: Path, two: Path) -> None:
    with replacing_together([one, two]) as (first, second):
        first.write_text("new")
        second.write_text("new")


def test_of_files_that_belong_together_the_one_that_is_read_first_comes_last(tmp_path, monkeypatch):
    one, two = pair(tmp_path)
    seen, rename = [], os.replace

    def watched(source, target):
        seen.append({p.name: p.read_text() for p in (one, two) if p.exists()})
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    replace_both(one, two)
    assert seen == [{"one": "old", "two": "old"}, {"one": "old"}, {"one": "new"}]
    assert names(tmp_path) == ["one", "two"]
    assert two.read_text() == "new"


def refusing(monkeypatch, which, error):
    """`os.replace` that fails where `which` says of the number of the call."""
    calls, rename = [], os.replace

    def replace(source, target):
        calls.append(source)
        if which(len(calls)):
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)


def no_links(*names):
    raise PermissionError(errno.EPERM, "Operation not permitted")


DENIED = PermissionError(errno.EPERM, "Operation not permitted", "x")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("error", [DENIED, KeyboardInterrupt()], ids=["denied", "interrupted"])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_rename_that_does_not_come_about_leaves_both_as_they_were(
    tmp_path, monkeypatch, last, error, links
):
    one, two = pair(tmp_path)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    refusing(monkeypatch, lambda call: call == last, error)
    with pytest.raises(type(error)) as told:
        replace_both(one, two)
    assert error is not DENIED or "what was there is as it was" in str(told.value)
    assert names(tmp_path) == ["one", "two"]
    assert one.read_text() == two.read_text() == "old"


def test_new_files_go_again_where_one_of_them_is_refused(tmp_path, monkeypatch):
    refusing(monkeypatch, lambda call: call == 2, DENIED)
    with pytest.raises(PermissionError):
        replace_both(tmp_path / "one", tmp_path / "two")
    assert names(tmp_path) == []


def test_what_cannot_be_put_back_is_told_with_its_place(tmp_path, monkeypatch):
    one, two = pair(tmp_path)
    refusing(monkeypatch, lambda call: call > 2, DENIED)
    with pytest.raises(OSError, match=r"could not be put back: .*one .*, which is now .*; .*two"):
        replace_both(one, two)
    held = [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert len(held) == 2 and all(p.read_text() == "old" for p in held)


def test_names_are_flushed_to_the_disk_with_the_files(tmp_path, monkeypatch):
    order, flush, rename = [], os.fsync, os.replace

    def watched(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), rename(a, b)))
    write_text(tmp_path / "made" / "t.txt", "x")
    assert order[0] == tmp_path.name
    assert order[1].startswith(".t.txt.") and order[2:] == ["rename", "made"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    left = [".a.safetensors.0123abcd.tmp", "dense/checkpoints/.b.ffffffff.tmp", "c/.d.00000000.tmp"]
    kept = [".a.tmp", ".a.0123abc.tmp", "a.0123abcd.tmp", ".a.0123abcg.tmp", ".a.0123abcd.tmp.x"]
    kept.append("a/b/c/.d.0123abcd.tmp")
    for name in (*left, *kept):
        make_folder((tmp_path / name).parent)
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert [name for name in left if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []
    remove_temporaries(tmp_path / "not there")
