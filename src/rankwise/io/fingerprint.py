"""Fingerprints of frozen weights in the metadata of a file, and what `load` makes of them.

An adapter is a difference. Added to another base it is silently wrong: every shape fits, nothing
is trained. So a file tells each layer's base by a few of its entries, and `load` compares.
"""

import base64
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise.check.base import compared
from rankwise.distributed.sharded import whole
from rankwise.numerics.fingerprint import SIZE, Fingerprint, fingerprint

BYTES = 4


def to_text(mark: Fingerprint) -> str:
    """Base64 of little-endian float32."""
    values = mark.values.tolist()
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")


def from_entry(path: Path | str, name: str, entry: Mapping[str, Any]) -> Fingerprint | None:
    """The fingerprint of a layer's entry; None where there is none, ValueError if it is broken."""
    text = entry.get("fingerprint")
    if text is None:
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: the fingerprint of layer {name!r} is broken: {error}") from error
    if not 0 < len(raw) <= BYTES * SIZE or len(raw) % BYTES:
        raise ValueError(
            f"{path}: the fingerprint of layer {name!r} must hold 1 to {SIZE} numbers, got "
            f"{len(raw)} bytes"
        )
    values = struct.unpack(f"<{len(raw) // BYTES}f", raw)
    return Fingerprint(torch.tensor(values, dtype=torch.float32, device="cpu"))


def of_modules(modules: Mapping[str, nn.Module]) -> dict[str, Fingerprint | None]:
    """Of the weights of plain layers that are to be adapted."""
    weights = {name: getattr(module, "weight", None) for name, module in modules.items()}
    return {
        n: fingerprint(whole(w)) if isinstance(w, torch.Tensor) else None
        for n, w in weights.items()
    }


def check_base(
    path: Path | str,
    stored: Mapping[str, Fingerprint | None],
    now: Mapping[str, Fingerprint | None],
) -> None:
    """ValueError if a layer's frozen weight is not the one that its adapter was trained on.

    A copy in another precision passes, and so does what cannot be compared: a quantised base, a
    file from before there were fingerprints.
    """
    comparison = compared(stored, now)
    if comparison.other:
        raise ValueError(
            f"{path}: the adapter was trained on another base: {comparison}. Load that one. "
            "`load` and `adapters.put_` take `other_base=True` if the change is meant."
        )
