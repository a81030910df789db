"""A parameter that does nothing, for DDP, which refuses a model that leaves it nothing to train."""

from typing import Any

import torch
from torch import nn

NAME = "ddp_anchor"


def anchor_(model: nn.Module) -> None:
    """Give `model` the anchor, once; no state dict and no file has it."""
    if hasattr(model, NAME):
        getattr(model, NAME).requires_grad_()
        return
    # It comes before all others, and models take their own type and device from the first.
    first = next(p for p in model.parameters() if p.is_floating_point())
    zero = torch.zeros(1, dtype=first.dtype, device=first.device)
    model.register_parameter(NAME, nn.Parameter(zero))
    model.register_state_dict_post_hook(_leave_out)
    model.register_load_state_dict_post_hook(_not_missing)


def is_anchor(name: str) -> bool:
    """Whether the parameter of this name is one."""
    return name == NAME or name.endswith("." + NAME)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    state.pop(prefix + NAME, None)


def _not_missing(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if not is_anchor(key)]
