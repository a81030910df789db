"""Keeps stock optimizers, averages and reducers away from factors, in any training loop.

Both hooks are torch's own, for all optimizers and all modules. They are registered with the first
low-rank layer, and cost a step of an optimizer that has been looked at one comparison.
"""

import functools
import threading
import weakref
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.optim.swa_utils import AveragedModel


class Held(NamedTuple):
    """What an optimizer held when it was last looked at."""

    sizes: list[int]
    """Of its groups."""
    factors: list[tuple[Tensor, str]]
    """Factors among its parameters, and what they are; most often none."""


_Held: TypeAlias = "weakref.WeakKeyDictionary[Optimizer, Held]"
WRAPPERS = (AveragedModel, DistributedDataParallel)
UNSUPPORTED = ("FullyShardedDataParallel",)
"""By name, for importing it takes long."""

_layers: "weakref.WeakSet[Any]" = weakref.WeakSet()
_held: _Held = weakref.WeakKeyDictionary()
# Models may be made in one thread while another one trains.
_lock = threading.RLock()


def guard(layer: Any) -> None:
    """From now on, let no stock optimizer step the factors of this low-rank layer."""
    with _lock:
        _layers.add(layer)
        _register()


@functools.cache
def _register() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_module_module_registration_hook(_before_registration)


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    if getattr(type(optimizer), "trains_factors", False):
        return
    held, sizes = _held.get(optimizer), [len(group["params"]) for group in optimizer.param_groups]
    if held is None or held.sizes != sizes:
        # Parameters of layers are kept when ranks change, so this is seldom.
        held = _held[optimizer] = Held(sizes, _factors_of(optimizer))
    for parameter, what in held.factors:
        if parameter.requires_grad or parameter.grad is not None:
            raise ValueError(
                f"{type(optimizer).__name__} must not step the factors of low-rank layers, and it "
                f"holds {what}: their `.grad` is a tangent gradient, and bases have to stay "
                "orthonormal. Train the model by `rankwise.Optimizer(model)`, which takes AdamW "
                "steps for everything else, or give this optimizer the other parameters only"
            )


def _factors_of(optimizer: Optimizer) -> list[tuple[Tensor, str]]:
    if any(getattr(type(part), "trains_factors", False) for part in vars(optimizer).values()):
        return []  # It wraps one that is made for factors.
    with _lock:
        layers = list(_layers)
    known = {
        id(getattr(layer, name)): f"{name} {tuple(getattr(layer, name).shape)} of a "
        f"{type(layer).__name__}"
        for layer in layers
        for name in layer.point_type._fields
    }
    held = (p for group in optimizer.param_groups for p in group["params"])
    return [(p, known[id(p)]) for p in held if id(p) in known]


def _before_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if child is None or not isinstance(parent, WRAPPERS) and _kind(parent) not in UNSUPPORTED:
        return
    trained: list[Any] = [m for m in child.modules() if m in _layers and m.U.requires_grad]
    if not trained:
        return
    layer = type(trained[0]).__name__
    if isinstance(parent, AveragedModel):
        raise ValueError(
            f"AveragedModel averages parameters one by one, and the mean of two bases of a {layer} "
            "is no basis: the averaged model would be wrong. Average what comes of it, e.g. "
            "`merge_(copy, final=True)` or `densify_(copy)` of a copy at each time, or leave "
            "averaging out"
        )
    if _kind(parent) in UNSUPPORTED:
        raise ValueError(
            f"{_kind(parent)} keeps parameters in buffers of a fixed size, and the factors of a "
            f"{layer} change theirs. Use DistributedDataParallel or FSDP2 (`fully_shard`) after "
            "`rankwise.distributed.prepare(model)`"
        )
    if any(m.replicas is None for m in trained):
        raise ValueError(
            f"DistributedDataParallel would reduce the factors of a {layer} in buckets of the "
            "sizes that they have now, and be silently wrong once a rank changes. Call "
            "`rankwise.distributed.prepare(model)` before the model is wrapped"
        )
    for replicas in {id(m.replicas): m.replicas for m in trained}.values():
        # `parent.module` is not yet there.
        replicas.wrapped_in(parent, child)


def _kind(module: nn.Module) -> str:
    return type(module).__name__
