"""The job of `rankwise convert`: from one file of an adapter to another, without a model."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from rankwise.adapters import Adapter, read, write
from rankwise.compress.truncation import Truncation
from rankwise.io.adapter_file import FILE_NAME
from rankwise.io.atomic import write_text
from rankwise.io.export_lora import LoraExport, write_lora
from rankwise.io.peft_config import CONFIG, is_peft, read_config
from rankwise.io.peft_folder import WEIGHTS
from rankwise.recipes.convert_options import DEFAULT_SOURCE, ConvertOptions
from rankwise.recipes.folder import METRICS
from rankwise.recipes.sums import write_sums
from rankwise.report.canvas import canvas
from rankwise.report.cut_figure import draw_cut
from rankwise.report.machine import versions

FIGURE = "ranks.png"
PACKAGES = ("rankwise", "torch", "safetensors")


class Outcome(NamedTuple):
    """What was written."""

    metrics: dict[str, Any]
    cut: Truncation
    export: LoraExport | None
    """None of an adapter file."""
    files: tuple[Path, ...]


def convert(options: ConvertOptions) -> Outcome:
    """Convert as asked; ValueError or FileNotFoundError for what the user can mend."""
    options.check()
    canvas(1, 1)  # Without matplotlib, say so before anything is written.
    _check_places(options)
    adapter = _source(options.source)
    path = Path(adapter.stored.path)
    small = adapter.rounded(rtol=options.tolerance or 0.0, max_rank=options.max_rank)
    cut = small.rounding
    assert cut is not None
    small = small.to(_precision(path))
    target = _places(options)
    if options.to_adapter:
        export, file = None, write(small, target.adapter)
    else:
        export, file = _write_lora(small, path, options), options.output / WEIGHTS
    stale = (FILE_NAME,) if export else (WEIGHTS, CONFIG)
    for name in stale if options.output.is_dir() else ():
        (options.output / name).unlink(missing_ok=True)
    metrics = _metrics(options, adapter, small, export, path, file)
    draw_cut(cut, target.figure)
    write_text(target.metrics, json.dumps(metrics, indent=1) + "\n")
    if options.output.is_dir():
        write_sums(options.output)
    return Outcome(metrics, cut, export, (file, target.metrics, target.figure))


class Places(NamedTuple):
    """Where the results go."""

    adapter: Path
    metrics: Path
    figure: Path


def _places(options: ConvertOptions) -> Places:
    """In the folder; of an output that is a file, beside it, under its name."""
    out = options.output
    if out.suffix == ".safetensors":
        return Places(out, out.with_suffix(f".{METRICS}"), out.with_suffix(f".{FIGURE}"))
    return Places(out / FILE_NAME, out / METRICS, out / FIGURE)


def _check_places(options: ConvertOptions) -> None:
    source, out = options.source, options.output
    if source == DEFAULT_SOURCE and not source.exists():
        raise FileNotFoundError(
            f"there is no {source}, which `rankwise finetune` writes. Name an adapter: "
            "rankwise convert IN OUT"
        )
    within = out.parent if out.suffix == ".safetensors" else out
    own = source if source.is_dir() else source.parent
    if out.resolve() == source.resolve() or within.resolve() == own.resolve():
        raise ValueError(f"{out} is where the adapter is: write the new one to another folder")
    if out.suffix != ".safetensors" and out.is_file():
        raise ValueError(f"{out} is a file; a LoRA is a folder (or name a file in .safetensors)")
    there = out.exists() and (out.is_file() or any(out.iterdir()))
    if there and not options.overwrite:
        raise ValueError(f"{out} is there already; --overwrite replaces an earlier result")


def _source(source: Path) -> Adapter:
    adapter = read(source)
    whole = [name for name, layer in adapter.layers.items() if not layer.has_base]
    if whole:
        raise ValueError(
            f"{adapter.stored.path}: layer {whole[0]!r} is a whole weight in factors, not an "
            "adapter: `rankwise.compress.truncate_` cuts such a model, `rankwise.shrink` makes it "
            "plain"
        )
    return adapter


def _precision(path: Path) -> torch.dtype:
    """Float64 where the file has it, else float32, in which half precision is exact."""
    with safe_open(path, framework="pt") as file:
        types = {file.get_slice(key).get_dtype() for key in file.keys()}
    return torch.float64 if "F64" in types else torch.float32


def _write_lora(adapter: Adapter, path: Path, options: ConvertOptions) -> LoraExport:
    config = read_config(path.parent) if _from_peft(path) else None
    return write_lora(
        adapter.stored,
        options.output,
        compact=options.compact,
        base_model_name=config.base_model if config else None,
        task_type=config.task_type if config else None,
        prefix=options.prefix,
        saved_modules=config.saved_modules if config else (),
    )


def _from_peft(path: Path) -> bool:
    return path.name == WEIGHTS and is_peft(path.parent)


def _metrics(
    options: ConvertOptions,
    before: Adapter,
    after: Adapter,
    export: LoraExport | None,
    source: Path,
    file: Path,
) -> dict[str, Any]:
    cut = after.rounding
    assert cut is not None
    left_out = list(after.stored.frozen) if export is None else list(export.dense)
    return {
        "from": "peft" if _from_peft(source) else "rankwise",
        "to": "rankwise" if export is None else "peft",
        "layers": {
            layer.name: {
                "map": after.layers[layer.name].map,
                "shape": list(after.layers[layer.name].factors.shape),
                "rank_before": layer.before[0],
                "rank": layer.after[0],
                "relative_error": layer.relative,
            }
            for layer in cut.layers
        },
        "parameters": {"before": before.parameters, "after": after.parameters},
        "bytes": {"before": source.stat().st_size, "after": file.stat().st_size},
        "relative_error": cut.error,
        "zero": list(export.zero) if export else [],
        "left_out": left_out,
        "consumers": ["rankwise"] if export is None else list(export.consumers),
        "options": options.to_json(),
        "versions": versions(PACKAGES),
    }
