"""What counts as a linear map, and how to look inside one.

Modules are known here by what they have, not by their class: quantised layers have many classes.
"""

from typing import Any

from torch import Tensor, nn


def check_module(model: Any) -> None:
    """TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")


def own_class(module: Any) -> type[Any]:
    """The class of `module` as it was written: FSDP2 puts one of its own, `FSDP...`, before it."""
    return next(k for k in type(module).__mro__ if not k.__name__.startswith("FSDP"))


def is_transposed(module: Any) -> bool:
    """Hugging Face's `Conv1D` (GPT-2): weight stored as (in, out)."""
    named = own_class(module).__name__ == "Conv1D"
    return named and hasattr(module, "nf") and hasattr(module, "nx")


def is_linear(module: Any) -> bool:
    """A module with a linear forward whose shape is known: `nn.Linear` and kin, `Conv1D`."""
    return is_transposed(module) or (
        isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "out_features", None), int)
        and hasattr(module, "weight")
    )


def linear_shape(module: Any) -> tuple[int, int]:
    """`(out_features, in_features)` of a linear module."""
    if is_transposed(module):
        return int(module.nf), int(module.nx)
    if not is_linear(module):
        raise TypeError(f"{type(module).__name__} is not a linear map that rankwise knows")
    return int(module.out_features), int(module.in_features)


def is_plain(weight: Any) -> bool:
    """An ordinary floating-point tensor; quantised ones are of other types, or of integers."""
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()


def is_intercepted(module: nn.Module) -> bool:
    """Whether a call of `module` does more than its class says."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def frozen_weight(module: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias of a plain frozen linear map, for one fused product.

    None where the module has to be called: a quantised or subclassed layer, one with hooks or a
    forward of its own, or a weight that is being trained.
    """
    if not (type(module) is nn.Linear or is_transposed(module)) or not is_plain(module.weight):
        return None
    if module.weight.requires_grad or is_intercepted(module):
        return None
    return (module.weight.mT if is_transposed(module) else module.weight), module.bias
