"""What is typed when a run goes on has to be what it began with."""

import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rankwise.io.json_object import short
from rankwise.recipes.folder import NOT_PART_OF_A_RUN, OPTIONS, read_options

Command = Callable[..., int | None]


def keeping_options(command: Command, arguments: Sequence[str]) -> Command:
    """`command`, which before it resumes a run compares what is typed with what the run began with.

    An option that has its default value is not seen to be typed by whoever gets the options alone.
    """
    typed = {name_of(word) for word in arguments if word.startswith("--")}

    @functools.wraps(command)
    def checked(*given: Any, **named: Any) -> int | None:
        for options in (*given, *named.values()):
            if is_dataclass(options) and getattr(options, "resume", False):
                _check(options, typed)
        return command(*given, **named)

    return checked


def name_of(word: str) -> str:
    """Of the option that is typed as `--word`, `--word=value` or, of a flag, `--no-word`."""
    return word[2:].partition("=")[0].replace("-", "_").removeprefix("no_")


def _check(options: Any, typed: Collection[str]) -> None:
    file: Path = options.output / OPTIONS
    began: dict[str, Any] = {}
    # What is wrong with the folder is told by who goes on in it.
    with suppress(OSError, ValueError):
        began = read_options(file)
    differing = [
        f"--{name.replace('_', '-')} (it was {short(began[name])})"
        for name in (f.name for f in fields(options))
        if name in typed and name in began and name not in NOT_PART_OF_A_RUN
        and _as_json(getattr(options, name)) != began[name]
    ]  # fmt: skip
    if differing:
        raise ValueError(f"a resumed run keeps its options; leave out {', '.join(differing)}")


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
