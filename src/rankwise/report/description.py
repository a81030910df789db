"""What does not change while a model trains: its layers, and what steps them."""

from typing import Any

from rankwise.nn.low_rank import LowRankModule
from rankwise.optim.optimizer import Optimizer

PARTS = ("rule", "rank_rule", "integrator", "control", "conditioning")


def described(optimizer: Optimizer) -> dict[str, Any]:
    """`layers`, `optimizer` (its parts as they are written in Python) and `groups`, for JSON."""
    parts = {name: getattr(optimizer, name) for name in PARTS}
    groups = [
        {"tensors": len(group["params"]), "weight_decay": group["weight_decay"]}
        for group in optimizer.param_groups
    ]
    return {
        "layers": [_described(name, layer) for name, layer in optimizer.layers],
        "optimizer": {k: None if part is None else repr(part) for k, part in parts.items()},
        "groups": groups,
    }


def _described(name: str, layer: LowRankModule) -> dict[str, Any]:
    m, n = layer.shape
    return {
        "name": name,
        "kind": type(layer).__name__,
        "shape": [m, n],
        "kernel": None if layer.kernel_size is None else list(layer.kernel_size),
        "full": [min(m, n)] if len(layer.ranks) == 1 else [m, n],
        "adapter": layer.base is not None,
    }
