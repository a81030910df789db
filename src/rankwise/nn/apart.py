"""The forward of layers that stay out of compiled graphs; importing this loads torch's compiler."""

from typing import Any

import torch
from torch import nn


@torch.compiler.disable(reason="factors change their shapes")  # type: ignore[untyped-decorator]
def apart(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`layer.forward(...)` as its class has it, never traced."""
    return type(layer).forward(layer, *args, **kwargs)
