"""Any arguments at all end with a status and a message."""

import contextlib
import io
import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.cli.main import main

SEEDED = ("finetune", "train", "compress", "attack", "federate", "study", "doctor")
COMMANDS = ("finetune", "train", "compress", "attack", "federate", "convert", "report")
OPTIONS = (
    "--output", "--resume", "--overwrite", "--seed", "--model", "--data", "--rank", "--steps",
    "--lr", "--eps", "--keep", "--clients", "--title", "--json", "--max-rank", "--threads",
    "--select", "-x", "--",
)  # fmt: skip
VALUES = (
    "",
    "0",
    "-1",
    "nan",
    "1e400",
    "9" * 30,
    "x.csv",
    "no/such",
    "../x",
    "[bold]",
    "\u2028",
    "'\"",
)
REFUSED = ("--threads", "0")
"""At the end of every line, so that no job begins: what all commands refuse that begin one."""


@settings(max_examples=25)
@given(
    st.sampled_from(COMMANDS),
    st.lists(st.sampled_from(OPTIONS) | st.sampled_from(VALUES) | st.text(max_size=8), max_size=4),
)
def test_arguments_end_with_a_status_and_a_message(command, words):
    told, here = io.StringIO(), os.getcwd()
    arguments = [command, *words, *REFUSED]
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(told):
        os.chdir(place)
        try:
            with contextlib.redirect_stdout(told):
                status = main(arguments)
        except SystemExit as end:
            status = end.code
        finally:
            os.chdir(here)
    assert status in (0, 2), told.getvalue()
    assert told.getvalue().strip()
    assert "Traceback" not in told.getvalue()


@pytest.mark.parametrize("word", ["", "\x00", "../report", "REPORT", "__class__"])
def test_a_command_that_is_none_is_told(word, capsys):
    assert main([word]) == 2
    assert "there is no command" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
@pytest.mark.parametrize("command", SEEDED)
def test_a_seed_that_some_generator_would_not_take_is_refused_alike(
    command, seed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([command, "--seed", seed]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert told == f"rankwise: error: --seed must be in [0, 2^32), got {seed}"
    assert list(tmp_path.iterdir()) == []
