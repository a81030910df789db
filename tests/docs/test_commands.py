"""Every command line on the pages is one that the parsers take; none is run."""

import dataclasses
import functools
import inspect
import re
import shlex
import sys
from collections.abc import Callable

import pytest

from pages import DOCS, PAGES, ROOT, command_lines, name_of
from rankwise.cli.main import call, commands

sys.path.insert(0, str(DOCS / "extensions"))
from command_line import options_of  # noqa: E402

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
MAKE = re.compile(r"(?:make|\.venv/bin/python|python) ")


def idle(command: Callable[..., None]) -> Callable[..., None]:
    """A command of the same arguments that does nothing."""

    @functools.wraps(command)
    def nothing(*args: object, **kwargs: object) -> None:
        return None

    return nothing


IDLE = {name: idle(command) for name, command in commands().items()}


def lines(start: str) -> list[tuple[str, str]]:
    """Page and command, without comments; `rankwise COMMAND` is of no command in particular."""
    found = ((name_of(page), line) for page in PAGES for line in command_lines(page))
    return [(page, line) for page, line in found if re.match(start, line) and "COMMAND" not in line]


def test_commands_are_found():
    assert len(lines("rankwise [a-z]")) > 30


@pytest.mark.parametrize("name", sorted({page for page, _ in lines("rankwise [a-z]")}))
def test_command_lines_are_understood(name, capsys):
    for page, line in lines("rankwise [a-z]"):
        if page == name:
            _, *arguments = shlex.split(line, comments=True)
            try:
                call(IDLE, [part for part in arguments if part != "..."])
            except SystemExit as stop:
                printed = capsys.readouterr()
                assert stop.code == 0, f"{page}: {line}\n{printed.out}{printed.err}"


@pytest.mark.parametrize("page, line", lines("make [a-z]"))
def test_targets_exist(page, line):
    words = shlex.split(line, comments=True)[1:]
    assert {word for word in words if "=" not in word} <= TARGETS


@pytest.mark.parametrize("page, line", lines(r"python \w+/"))
def test_scripts_exist(page, line):
    assert (ROOT / shlex.split(line, comments=True)[1]).is_file()


def test_an_unknown_option_would_be_found():
    with pytest.raises(SystemExit) as stop:
        call(IDLE, ["train", "--keeep", "0.1"])
    assert stop.value.code == 2


def fields_of(command: Callable[..., None]) -> set[str]:
    """Options of a command: its arguments, and the fields of those that are dataclasses."""
    found = set()
    for argument in inspect.signature(command, eval_str=True).parameters.values():
        if dataclasses.is_dataclass(argument.annotation):
            found |= {f.name for f in dataclasses.fields(argument.annotation) if f.init}
        elif argument.kind is not argument.POSITIONAL_ONLY:
            found.add(argument.name)
    return {name.replace("_", "-") for name in found}


@pytest.mark.parametrize("name", commands())
def test_the_page_of_the_command_line_has_every_command_with_every_option(name):
    assert f"```{{command}} {name}\n" in (DOCS / "cli.md").read_text()
    shown = {re.sub("^--(no-)?", "", option.name) for option in options_of(name) if option.name}
    assert fields_of(commands()[name]) == shown
    assert all(option.text for option in options_of(name))
