"""The directive `{command}`: the options of a command, read from its own `--help`."""

import contextlib
import io
import os
import re
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rankwise.cli.main import main

OPTION = re.compile(r"^ {1,2}(-h, --help|--[a-z][\w-]*|\[[\[{])(.*?)(?:\s{2,}(.*))?$")
DEFAULT = re.compile(r"\s*\(default: ?(.*?)\)$")


class Option(NamedTuple):
    """One option as its help tells it."""

    name: str
    values: str
    text: str
    default: str


def help_of(command: str) -> str:
    """What `rankwise COMMAND --help` prints, on a terminal so wide that nothing is wrapped.

    What is no terminal gets no frames, only lines and spaces.
    """
    printed = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "600"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width
    return printed.getvalue()


def options_of(command: str) -> list[Option]:
    """All options but `--help`, in the order of the help."""
    found: list[Option] = []
    for line in help_of(command).splitlines():
        line = line.rstrip()
        if match := OPTION.match(line):
            name, values, text = (part or "" for part in match.groups())
            if name in ("[[", "[{"):  # Without a name: by its place.
                name, values = "", name + values
            found.append(Option(name, values.strip(), text, ""))
        elif line.startswith(" " * 8) and found:
            last = found[-1]
            found[-1] = last._replace(text=f"{last.text} {line.strip()}".strip())
    return [_with_default(option) for option in found if option.name != "-h, --help"]


def _with_default(option: Option) -> Option:
    match = DEFAULT.search(option.text)
    if match is None:
        return option
    default = "" if match[1] in ("None", "False") else match[1]
    text = option.text[: match.start()]
    if option.name.startswith("--no-") and default == "True":
        text, default = f"Switches off: {text[:1].lower()}{text[1:]}", ""
    values = option.values.replace("{None}|", "")
    several = re.fullmatch(r"\[+(\w+) \[\1 \.\.\.\]\]+", values)
    values = f"{several[1]} ..." if several else values
    return option._replace(values=values, text=text, default=default)


class Command(SphinxDirective):
    """A table of the options of one command."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        options = options_of(self.arguments[0])
        if not options:
            raise self.error(f"there is no command {self.arguments[0]!r}")
        table = nodes.table(classes=["options"])
        group = nodes.tgroup(cols=3)
        table += group
        group += [nodes.colspec(colwidth=width) for width in (30, 20, 50)]
        body = nodes.tbody()
        group += [nodes.thead("", _row("option", "default", "")), body]
        for option in options:
            name = nodes.literal(text=option.name or option.values)
            values = f" {option.values}" if option.name else ""
            body += _row([name, nodes.Text(values)], _default(option), _text(option))
        return [table]


def _text(option: Option) -> list[nodes.Node]:
    """Options and what stands in backticks as code: in text, `--` is a dash."""
    parts = re.split(r"`([^`]+)`|(?<![\w-])(--[a-z][\w-]*)", option.text)
    texts, codes = parts[::3], [a or b for a, b in zip(parts[1::3], parts[2::3], strict=True)]
    found: list[nodes.Node] = [nodes.Text(texts[0])]
    for code, text in zip(codes, texts[1:], strict=True):
        found += [nodes.literal(text=code), nodes.Text(text)]
    return found


def _default(option: Option) -> list[nodes.Node] | str:
    return [nodes.literal(text=option.default)] if option.default else ""


def _row(*cells: list[nodes.Node] | str) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        inside = [nodes.Text(cell)] if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", *inside))
    return row


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command", Command)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
