"""Files as other programs write them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
from torch import Tensor


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """By safetensors, which goes by way of numpy; rankwise writes its own without."""
    pytest.importorskip("numpy")
    safetensors.torch.save_file(dict(tensors), path, metadata=metadata)
