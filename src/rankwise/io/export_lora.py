"""Export in PEFT's format, such that every program that reads it applies the same matrix.

Programs disagree on the scale: `alpha / r` of the configuration, per layer or globally, or divided
by the rank of the tensor. With `alpha = r` everywhere, all of these are 1. Layers of different
ranks are padded with zeros to the largest, so that no per-layer patterns are needed, which some
programs ignore.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankwise.distributed.replicas import writes_files
from rankwise.io.atomic import replacing_together
from rankwise.io.lora import LoraPair, is_zero, lora_pairs, padded
from rankwise.io.path import given_path
from rankwise.io.peft_config import CONFIG, TASK_TYPES
from rankwise.io.peft_folder import PREFIX, WEIGHTS
from rankwise.io.state import trained_state
from rankwise.io.stored import MAPS, Stored
from rankwise.io.tensor_file import fill
from rankwise.nn.conv import LowRankConv2d
from rankwise.nn.low_rank import LowRankModule, low_rank_layers
from rankwise.surgery.layers import parametric_layers
from rankwise.surgery.plan import check_rank


@dataclass(frozen=True)
class LoraExport:
    """What was written; `print` it."""

    folder: Path
    compact: bool
    """Exact ranks with patterns, instead of zero padding."""
    ranks: dict[str, int]
    """Exact rank of each exported layer."""
    errors: dict[str, float]
    """Relative error of each layer cut to `max_rank`; only these."""
    zero: tuple[str, ...]
    """Layers left out because their core is zero."""
    dense: tuple[str, ...]
    """Parameters that train but that LoRA cannot hold: not in the export."""
    padded_parameters: int
    compact_parameters: int
    maps: tuple[str, ...] = ("linear",)
    """Kinds of the exported layers: "linear", "embedding", "conv1d", "conv2d"."""
    saved_modules: tuple[str, ...] = ()
    """Modules that PEFT trained whole and whose tensors are in the folder."""

    @property
    def rank(self) -> int:
        """`r` of the configuration."""
        return max(self.ranks.values())

    @property
    def consumers(self) -> tuple[str, ...]:
        """Programs that read this layout and these kinds of layers rightly."""
        if self.maps != ("linear",) or self.saved_modules:
            # vLLM, llama.cpp and diffusers know no embeddings, no convolutions, or no heads.
            return ("PEFT", "transformers")
        vllm = f"vLLM (--max-lora-rank {self.rank} or more)"
        everywhere = ("PEFT", "transformers", vllm)
        if self.compact and len(set(self.ranks.values())) > 1:
            return everywhere
        return (*everywhere, "diffusers", "llama.cpp")

    def __str__(self) -> str:
        layout = "compact" if self.compact else "padded"
        ratio = self.padded_parameters / self.compact_parameters
        lines = [
            f"{self.folder}: {len(self.ranks)} layers, rank {self.rank}, {layout} layout",
            f"parameters: {self.padded_parameters:,} padded, {self.compact_parameters:,} compact "
            f"({ratio:.2f}x)",
            f"readable by: {', '.join(self.consumers)}",
        ]
        if self.errors:
            name, error = max(self.errors.items(), key=lambda item: item[1])
            lines.append(
                f"cut to max_rank: {len(self.errors)} layers, largest relative error {error:.1e} "
                f"({name})"
            )
        if self.zero:
            lines.append(f"left out, zero: {', '.join(self.zero)}")
        if self.dense:
            lines.append(f"trained, but not LoRA and not exported: {', '.join(self.dense)}")
        return "\n".join(lines)


def export_lora(
    model: nn.Module,
    folder: str | Path,
    *,
    compact: bool = False,
    max_rank: int | None = None,
    base_model_name: str | None = None,
    task_type: str | None = None,
    prefix: str = "",
) -> LoraExport:
    """Write `adapter_model.safetensors` and `adapter_config.json`, readable without rankwise.

    On several processes the first one writes; who has to call it is told at `save`.

    Args:
        model: adapted; unchanged.
        folder: made if need be.
        compact: exact ranks with `rank_pattern` instead of zero padding to the largest rank:
            a smaller file, that fewer programs read (see `LoraExport.consumers`).
        max_rank: cut every layer to this rank by SVD, >= 1; the errors are in the result.
        base_model_name: name or path of the base model, for the configuration.
        task_type: one of `TASK_TYPES`, PEFT's, for example "SEQ_CLS" or "CAUSAL_LM".
        prefix: if `model` wraps the model that will read the file: the name of that part, for
            example "encoder". Every adapted layer must be inside.

    Raises:
        ValueError: if nothing can be exported, a layer lies outside `prefix`, or PEFT knows no such
            task.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got {type(model).__name__}; "
            "`rankwise.adapters.export_lora` takes an adapter"
        )
    if not low_rank_layers(model):
        raise ValueError("the model has no low-rank layer to export; `adapt_(model)` makes them")
    for name, layer in low_rank_layers(model).items():
        if isinstance(layer, LowRankConv2d) and layer.geometry.dilation != (1, 1):
            raise ValueError(f"layer {name!r} is dilated, and PEFT's kernel beside it would not be")
    for shared in parametric_layers(model):
        if isinstance(shared.module, LowRankModule) and len(shared.names) > 1:
            raise ValueError(
                f"layer {shared.name!r} is also {shared.names[1]!r}, and PEFT would adapt the "
                "first only: give it a layer of its own there, or `merge_(model, final=True)`"
            )
    return write_lora(
        trained_state(model),
        folder,
        compact=compact,
        max_rank=max_rank,
        base_model_name=base_model_name,
        task_type=task_type,
        prefix=prefix,
        writes=writes_files(model),
    )


def write_lora(
    state: Stored,
    folder: str | Path,
    *,
    compact: bool = False,
    max_rank: int | None = None,
    base_model_name: str | None = None,
    task_type: str | None = None,
    prefix: str = "",
    saved_modules: Sequence[str] = (),
    writes: bool = True,
) -> LoraExport:
    """`export_lora` of what is known of a model; without `writes`, all but the files.

    With `saved_modules`, names of modules that PEFT trained whole, the dense tensors and weights of
    the base that PEFT wrote are in the folder too.
    """
    if max_rank is not None:
        check_rank(max_rank, "max_rank")
    if task_type is not None and task_type not in TASK_TYPES:
        raise ValueError(f"`task_type` must be one of {', '.join(TASK_TYPES)}, got {task_type!r}")
    pairs = lora_pairs(state, max_rank=max_rank, prefix=prefix.rstrip("."))
    if not pairs:
        raise ValueError("every layer has a zero core: there is nothing to export. Train first.")
    rank = max(pair.rank for pair in pairs)
    exported = pairs if compact else [padded(pair, rank) for pair in pairs]
    carried = _carried(state) if state.foreign and (saved_modules or state.frozen) else {}
    config = _config(exported, rank, base_model_name, task_type)
    config["modules_to_save"] = list(saved_modules) or None
    path = given_path(folder)
    tensors = {key: t for pair in exported for key, t in pair.tensors().items()}
    if writes:
        with replacing_together([path / WEIGHTS, path / CONFIG]) as (weights, told):
            fill(weights, path / WEIGHTS, {**tensors, **carried}, {})
            told.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    found = {pair.layer.map for pair in pairs}
    return LoraExport(
        folder=path,
        compact=compact,
        ranks={pair.name: pair.rank for pair in pairs},
        errors={pair.name: pair.error for pair in pairs if pair.rank < pair.rank_before},
        zero=tuple(name for name, layer in state.layers.items() if is_zero(layer)),
        dense=() if carried else tuple(state.dense),
        saved_modules=tuple(saved_modules),
        padded_parameters=sum(rank * _width(pair) for pair in pairs),
        compact_parameters=sum(pair.rank * _width(pair) for pair in pairs),
        maps=tuple(kind for kind in MAPS if kind in found),
    )


def _carried(state: Stored) -> dict[str, Tensor]:
    """What PEFT's file has beside the layers, under PEFT's names."""
    tensors = {PREFIX + name: t for name, t in (*state.dense.items(), *state.statistics.items())}
    for name, t in state.frozen.items():
        module, _, entry = name.rpartition(".")
        base = f"{module}.base_layer.{entry}" if module in state.layers else name
        tensors[PREFIX + base] = t
    return tensors


def _width(pair: LoraPair) -> int:
    return pair.A.shape[1] + pair.B.shape[0]


def _config(
    pairs: list[LoraPair], rank: int, base_model_name: str | None, task_type: str | None
) -> dict[str, Any]:
    """The fewest fields that PEFT needs: an older PEFT refuses fields that it does not know."""
    ranks = {pair.name: pair.rank for pair in pairs}
    pattern = {} if set(ranks.values()) == {rank} else _most_specific_first(ranks)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # PEFT sets this right for each layer of a model that mixes both, with a warning.
        "fan_in_fan_out": all(pair.layer.transposed for pair in pairs),
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": list(ranks),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
    }


def _most_specific_first(ranks: dict[str, int]) -> dict[str, int]:
    """PEFT takes the first key that matches the end of a layer's name, as a regular expression."""
    ordered = sorted(ranks.items(), key=lambda item: -item[0].count("."))
    return {re.escape(name).replace(r"\.", "."): rank for name, rank in ordered}
