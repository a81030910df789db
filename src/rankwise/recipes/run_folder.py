"""What can be read of a run's folder, and what of it is damaged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.check.curve import Line, RuleText, rule_text
from rankwise.io.adapter_file import FILE_NAME
from rankwise.io.json_object import parsed
from rankwise.io.ordinary import ordinary
from rankwise.recipes.folder import METRICS, OPTIONS
from rankwise.recipes.training import CHECKPOINTS, FORMER, checkpoints_in
from rankwise.recipes.weight_files import WeightFile, format_of, read_json, read_weights
from rankwise.report.fields import CURVE
from rankwise.report.history import HISTORY
from rankwise.report.recorder import RUN

WEIGHT_FILES = (FILE_NAME, "model.safetensors", "factors.safetensors")
"""Where the weights of the end are, the best place first; checkpoints come after them."""
PLAIN_RULES = ("SGD", "HeavyBall", "sgd", "heavy-ball")


class Folder(NamedTuple):
    """What could be read of a run."""

    path: Path
    options: Mapping[str, Any]
    metrics: Mapping[str, Any]
    run: Mapping[str, Any]
    """What a recorder has written at the start."""
    history: list[Line]
    file: WeightFile | None
    damaged: tuple[str, ...]

    @property
    def rule(self) -> RuleText | None:
        text = self.metrics.get("rank_rule") or self._parts.get("rank_rule")
        return rule_text(text) if isinstance(text, str) else None

    @property
    def relative(self) -> bool:
        """Whether the learning rate is a relative change of weights."""
        text = self.metrics.get("rule") or self._parts.get("rule") or self.options.get("rule") or ""
        ours = bool(self.options or self.metrics.get("versions") or self.run)
        return ours and not str(text).startswith(PLAIN_RULES)

    @property
    def complete(self) -> bool:
        """A command writes its metrics last; a recorder may end without any."""
        if self.options:
            return bool(self.metrics)
        return bool(self.metrics) or self.run.get("finished") is True

    @property
    def _parts(self) -> Mapping[str, Any]:
        parts = self.run.get("optimizer")
        return parts if isinstance(parts, dict) else {}


def read_folder(path: Path) -> Folder:
    """Everything in the folder of a run that can be read, and the names of what cannot."""
    names = (OPTIONS, METRICS, RUN, HISTORY, *WEIGHT_FILES, FORMER, CHECKPOINTS)
    known = [name for name in names if (path / name).exists()]
    if not known:
        inside = sorted(p.parent.name for p in path.glob(f"*/{HISTORY}"))
        hint = f"; examine one of {', '.join(inside)} in it" if inside else ""
        raise ValueError(f"{path} holds neither a run nor an adapter{hint}")
    damaged: list[str] = []
    objects: dict[str, Mapping[str, Any]] = {}
    for name in (OPTIONS, METRICS, RUN):
        objects[name] = {}
        if (path / name).exists():
            try:
                objects[name] = read_json(path / name)
            except ValueError as error:
                damaged.append(str(error))
    lines, flaw = read_lines(path / HISTORY) if (path / HISTORY).exists() else ([], "")
    damaged += [flaw] if flaw else []
    file, flaws = _best_weights(path)
    damaged += flaws
    return Folder(
        path, objects[OPTIONS], objects[METRICS], objects[RUN], lines, file, tuple(damaged)
    )


def read_lines(path: Path) -> tuple[list[Line], str]:
    """The lines of a history up to a broken one, and what is wrong, or "".

    A last line without its end is what a crash leaves, and no damage.
    """
    try:
        with open(path, encoding="utf-8", errors="replace", opener=ordinary) as file:
            text = file.read()
    except ValueError as error:
        return [], str(error)
    whole = text.splitlines()
    lines: list[Line] = []
    for number, entry in enumerate(whole, 1):
        try:
            line = parsed(entry, f"{path}, line {number}")
            # Of a loop of somebody's own, what is of another kind is not judged.
            line = {k: v for k, v in line.items() if k not in CURVE or CURVE[k].holds(v)}
            line["loss"]
        except (ValueError, KeyError):
            cut_off = number == len(whole) and not text.endswith("\n")
            return lines, "" if cut_off else f"{path}: line {number} is not a step with a loss"
        lines.append(line)
    return lines, ""


def _best_weights(path: Path) -> tuple[WeightFile | None, list[str]]:
    """Opens all files; the weights of the first that has any, and the flaws of all."""
    best: WeightFile | None = None
    flaws: list[str] = []
    places = [path / name for name in WEIGHT_FILES if (path / name).exists()]
    places += checkpoints_in(path)
    for place in places:
        try:
            if format_of(place) is not None:
                best = best or read_weights(place)
        except ValueError as error:
            flaws.append(str(error))
    for other in sorted(path.glob("*.safetensors")):
        if other not in places:
            try:
                format_of(other)
            except ValueError as error:
                flaws.append(str(error))
    return best, flaws
