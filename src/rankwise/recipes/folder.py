"""The folder of a run: begun once, gone on with, never overwritten by accident."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rankwise.io.atomic import remove_temporaries, write_text
from rankwise.io.json_object import read_object
from rankwise.recipes.sums import METRICS as METRICS
from rankwise.recipes.sums import SUMS, check_sum, write_sums

OPTIONS = "options.json"
POSITIONAL = {"positional": True}
"""Metadata of a field that has no name on the command line."""
ASKED_ANEW = ("save_every", "keep_checkpoints", "threads")
"""Options that a run takes from the command that goes on with it."""
NOT_PART_OF_A_RUN = ("output", "resume", "overwrite", *ASKED_ANEW)


class RunOptions(Protocol):
    """What the options of every job have: a dataclass, complete by its defaults."""

    @property
    def output(self) -> Path: ...

    @property
    def resume(self) -> bool: ...

    @property
    def overwrite(self) -> bool: ...

    @property
    def save_every(self) -> int: ...

    @property
    def threads(self) -> int | None: ...

    def check(self) -> None: ...

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Any: ...


Asked = TypeVar("Asked", bound=RunOptions)


def prepared(asked: Asked) -> Asked:
    """The options of the run, once they and the folder are found fit; nothing is written.

    Raises ValueError for options that cannot work, and for a folder that holds something else.
    """
    asked.check()
    folder, file = asked.output, asked.output / OPTIONS
    if asked.resume or asked.overwrite:
        check_links(folder)
    if asked.resume:
        return _resumed(asked)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if not os.access(there, os.W_OK):
        raise ValueError(f"--output {folder}: {there} cannot be written to; name another folder")
    if folder.exists() and any(folder.iterdir()) and not asked.overwrite:
        hint = "--resume goes on with it, " if file.exists() else ""
        raise ValueError(
            f"{folder} is not empty; {hint}--overwrite replaces a run, --output names another"
        )
    return asked


def check_links(folder: Path) -> None:
    """ValueError for a link in `folder` that leads out of it: a run writes and removes in there."""
    home = folder.resolve()
    for place, inner, files in os.walk(folder):
        for path in (Path(place, name) for name in (*inner, *files)):
            if path.is_symlink() and home not in path.resolve().parents:
                raise ValueError(
                    f"{path} is a link out of {folder}, where files are written and removed: "
                    "remove the link, or name another --output"
                )


def begin(options: RunOptions, names: Iterable[str]) -> None:
    """The folder of a run, without what a killed process has left.

    Of a new run: without the files and folders `names` of an earlier one, with its options.
    """
    folder = options.output
    remove_temporaries(folder)
    if options.resume:
        return
    for name in (OPTIONS, SUMS, METRICS, *names):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    write_text(folder / OPTIONS, json.dumps(options.to_json(), indent=2) + "\n")
    write_sums(folder, [OPTIONS])


def finish(folder: Path, metrics: Mapping[str, Any], only: Iterable[str] | None = None) -> None:
    """Write what a run writes last: its metrics, where it is complete, and the sums of all.

    Where the folder may hold files of others too, of `only` these.
    """
    write_text(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    write_sums(folder, None if only is None else (*only, METRICS))


def read_options(file: Path) -> dict[str, Any]:
    """What a run was started with; ValueError, naming the file, where it is not that."""
    return read_object(file, "options")


def conflicts(asked: Any, saved: Any) -> list[str]:
    """Options of `asked` that differ from `saved` and are not at their default."""
    default = type(asked)()
    return [
        f"{_flag(f)}{_typed(getattr(asked, f.name))} (was {_typed(getattr(saved, f.name))})"
        for f in fields(asked)
        if f.name not in NOT_PART_OF_A_RUN
        and getattr(asked, f.name) != getattr(default, f.name)
        and getattr(asked, f.name) != getattr(saved, f.name)
    ]


def _flag(option: Field[Any]) -> str:
    return "" if option.metadata == POSITIONAL else f"--{option.name.replace('_', '-')} "


def _typed(value: Any) -> str:
    """As on the command line."""
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def is_import_path(name: Any) -> bool:
    """Whether it is of the form `package.module:factory`."""
    return isinstance(name, str) and all(name.partition(":")) and not Path(name).exists()


def require(holds: bool, name: str, rule: str, got: Any) -> None:
    """ValueError that names an option, unless `holds`."""
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} {rule}, got {got}")


def _resumed(asked: Asked) -> Asked:
    folder, file = asked.output, asked.output / OPTIONS
    if not file.exists():
        raise ValueError(f"{folder} holds no run to resume; start one without --resume")
    if (folder / METRICS).exists():
        raise ValueError(f"the run in {folder} is finished; see {folder / METRICS}")
    check_sum(folder, OPTIONS)
    written = read_options(file)
    foreign = sorted(written.keys() - asked.to_json().keys())
    if foreign:
        name = foreign[0].replace("_", "-")
        raise ValueError(f"{file} is of another command: it has --{name}, unknown to this one")
    try:
        saved: Asked = type(asked).from_json(written)
        saved.check()
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    model = getattr(saved, "model", None)
    if is_import_path(model) and getattr(asked, "model", None) != model:
        raise ValueError(
            f"{file} names the network {model}, whose code would run: name it too to go on, "
            f"--model {model}"
        )
    differing = conflicts(asked, saved)
    if differing:
        raise ValueError(f"a resumed run keeps its options; leave out {', '.join(differing)}")
    fixed = {**saved.to_json(), "output": str(folder), "resume": True, "overwrite": False}
    fixed |= {name: getattr(asked, name) for name in ASKED_ANEW if name in fixed}
    resumed: Asked = type(asked).from_json(fixed)
    return resumed
