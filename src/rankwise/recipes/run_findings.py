"""What a run folder, an adapter, or a record of losses tells, file by file."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from rankwise.check.base import base_finding, compared
from rankwise.check.curve import curve_findings, rank_bounds
from rankwise.check.finding import Finding, fault, fine, some, warning
from rankwise.check.weights import Weight, weights_findings
from rankwise.io.peft_config import CONFIG
from rankwise.io.peft_folder import WEIGHTS
from rankwise.io.tensor_file import read_tensors
from rankwise.recipes.base_files import base_weights
from rankwise.recipes.federate_course import CHECKPOINT
from rankwise.recipes.folder import is_import_path
from rankwise.recipes.run_folder import WEIGHT_FILES, Folder, read_folder, read_lines
from rankwise.recipes.sums import sums_findings
from rankwise.recipes.training import FORMER, checkpoints_in
from rankwise.recipes.weight_files import (
    WeightFile,
    read_lora,
    read_weights,
)
from rankwise.report.fields import count

LORA = "lora"
COMMANDS = {
    "eval_fraction": "finetune",
    "heal_steps": "compress",
    "surrogate": "attack",
    "local_steps": "federate",
}
"""An option that one command alone has."""
STEPS = ("steps", "heal_steps")


def findings_of(path: Path, base: str | None = None) -> list[Finding]:
    """Everything that can be said of what lies at `path`.

    Args:
        path: folder of a run or of an adapter, its history, or a file of weights.
        base: the model under the adapter, see `base_weights`.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is nothing that can be examined.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.is_file() and path.suffix == ".safetensors":
        return _file_findings(path, base)
    if path.is_file():
        lines, flaw = read_lines(path)
        return [_files_finding([path.name], [flaw] if flaw else []), *curve_findings(lines)]
    if (path / CONFIG).exists():
        return _lora_findings(path, base)
    return _folder_findings(read_folder(path), base)


def _folder_findings(folder: Folder, base: str | None) -> list[Finding]:
    names = [p.name for p in sorted(folder.path.iterdir()) if p.suffix in (".json", ".safetensors")]
    found = [_files_finding(names, list(folder.damaged))]
    found += sums_findings(folder.path)
    found += _complete(folder)
    skipped = folder.metrics.get("skipped_steps")
    found += curve_findings(
        folder.history,
        rule=folder.rule,
        relative=folder.relative,
        skipped=skipped if count(skipped) else None,
        fits_already="heal_steps" in folder.options,
    )
    if folder.file is not None:
        found += _weight_findings(folder.file, base)
        found += rank_bounds(folder.file.weights, folder.rule) if folder.complete else []
        found += _export(folder.path, folder.file)
    return found


def _file_findings(path: Path, base: str | None) -> list[Finding]:
    try:
        file = read_weights(path)
    except ValueError as error:
        return [_files_finding([path.name], [str(error)])]
    return [_files_finding([path.name], []), *_weight_findings(file, base)]


def _lora_findings(folder: Path, base: str | None) -> list[Finding]:
    try:
        file = read_lora(folder)
    except ValueError as error:
        return [_files_finding([WEIGHTS], [str(error)])]
    return [_files_finding([CONFIG, WEIGHTS], []), *_weight_findings(file, base)]


def _files_finding(names: list[str], damaged: list[str]) -> Finding:
    if damaged:
        return fault(
            "files",
            "; ".join(damaged),
            "take a copy; a run goes on from the checkpoint before a damaged one by itself. Files "
            "of rankwise appear whole or not at all, so a copy or a disk has done it",
        )
    return fine("files", f"{len(names)} can be read")


def _complete(folder: Folder) -> list[Finding]:
    name = "complete run"
    if not folder.options and not folder.run:
        return []
    if folder.complete:
        return [fine(name, f"{len(folder.history)} steps")]
    options = folder.options
    asked = next((options[key] for key in STEPS if isinstance(options.get(key), int)), None)
    taken = f"{len(folder.history)} steps" + (f" of {asked}" if asked else "")
    command = next((c for key, c in COMMANDS.items() if key in options), "train")
    if not options:
        mend = "`load_training` puts it back where `save_training` left it, then go on"
    elif _has_checkpoint(folder.path):
        model = options.get("model")
        named = f" --model {model}" if is_import_path(model) else ""
        mend = f"rankwise {command} --resume --output {folder.path}{named}"
    else:
        mend = f"it has no checkpoint: start rankwise {command} anew, with --overwrite"
    return [warning(name, f"stopped after {taken}, or is still running", mend)]


def _has_checkpoint(path: Path) -> bool:
    """Of its own, or of one of several networks or contenders."""
    places = [path, *(place for place in path.iterdir() if place.is_dir())]
    return any((place / CHECKPOINT).exists() or checkpoints_in(place) for place in places)


def _weight_findings(file: WeightFile, base: str | None) -> list[Finding]:
    weights, found = dict(file.weights), []
    if base is not None and any(w.has_base for w in weights.values()):
        there = base_weights(base, {n: w for n, w in weights.items() if w.has_base})
        weights |= {n: weights[n]._replace(base_norm=b.norm) for n, b in there.items()}
        found.append(_base(file, weights, {n: b.mark for n, b in there.items()}, base))
    checked = list(weights_findings(weights))
    bad = any(f.mend for f in checked if f.name in ("finite factors", "orthonormal bases"))
    if file.flaw and not bad:
        found.append(_files_finding([], [file.flaw]))
    return found + checked


def _base(
    file: WeightFile, weights: dict[str, Weight], there: dict[str, Any], base: str
) -> Finding:
    adapters = [n for n, w in weights.items() if w.has_base]
    missing = [n for n in adapters if n not in there]
    if missing:
        return fault(
            "base",
            f"{base} has no weight of the right shape for {len(missing)} of {len(adapters)} "
            f"adapted layers: {some(missing)}",
            "name the model that the adapter was trained on",
        )
    return base_finding(compared(file.marks, there))


def _export(path: Path, file: WeightFile) -> list[Finding]:
    """Whether a LoRA export beside the adapter lacks something that was trained."""
    name, folder = "export", path / LORA
    if not (folder / CONFIG).exists():
        return []
    try:
        exported = read_lora(folder).weights
    except ValueError as error:
        return [_files_finding([], [str(error)])]
    ends = tuple(f".{n}" for n in exported)
    lacking = [
        n for n, w in file.weights.items()
        if w.has_base and bool(w.point[1].any()) and n not in exported and not n.endswith(ends)
    ]  # fmt: skip
    if lacking:
        return [
            fault(
                name,
                f"{LORA}/ lacks {len(lacking)} trained layers: {some(lacking)}",
                "export again, `rankwise.export_lora(model, folder)`",
            )
        ]
    homeless = sorted(set(file.dense) - _kept_beside(path))
    if homeless:
        return [
            warning(
                name,
                f"{LORA}/ cannot hold {len(homeless)} densely trained parameters: {some(homeless)}",
                "LoRA holds adapters only: take along the adapter file, or save these parameters "
                "beside the export",
            )
        ]
    return [fine(name, f"{LORA}/ holds all {len(exported)} trained layers")]


def _kept_beside(path: Path) -> set[str]:
    """Names of tensors in plain files beside the adapter, such as those of a head."""
    kept: set[str] = set()
    for file in (*path.glob("*.safetensors"), *(path / LORA).glob("*.safetensors")):
        if file.name not in (*WEIGHT_FILES, FORMER, WEIGHTS):
            # What is damaged is told among the damaged files.
            with suppress(ValueError):
                kept.update(read_tensors(file).tensors)
    return kept
