"""One process at a time in a folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.cli.main import main
from rankwise.recipes.alone import alone_in

HOLDS = """
import sys, time
from pathlib import Path
from rankwise.recipes.alone import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path):
    """A folder with another process in it."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDS, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        yield folder, process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_gone_even_by_force(held):
    folder, process = held
    with pytest.raises(ValueError, match=f"another process is at work in {folder}: wait for it"):
        with alone_in(folder):
            pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with alone_in(folder):
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["finetune", "train", "compress", "attack", "federate"])
def test_a_command_says_so_and_touches_nothing(held, command, capsys):
    folder, _ = held
    (folder / ".a.0123abcd.tmp").touch()
    assert main([command, "--output", str(folder), "--overwrite"]) == 2
    assert f"another process is at work in {folder}" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == [".a.0123abcd.tmp"]


def test_one_after_the_other_in_the_same_process(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path):
            with pytest.raises(ValueError, match="another process"):
                with alone_in(tmp_path):
                    pass


def test_a_folder_that_stays_empty_goes_and_one_that_was_there_stays(tmp_path):
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "old", tmp_path / "old" / "a" / "b", tmp_path / "c"):
        with alone_in(folder):
            assert folder.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert list((tmp_path / "old").iterdir()) == []
    with alone_in(tmp_path / "c"):
        (tmp_path / "c" / "x").touch()
    assert (tmp_path / "c" / "x").exists()


def test_what_cannot_be_a_folder_is_left_to_who_writes_there(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (file, file / "in", Path(os.devnull)):
        with alone_in(folder):
            pass
    assert file.read_text() == "x"
