"""Giving a trained model low-rank adapters, in place."""

from torch import nn

from rankwise.nn.base import check_module, is_linear, linear_shape
from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import low_rank_layers
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import zero_core
from rankwise.surgery.adapter import adapter_for, factor_like
from rankwise.surgery.init import stream
from rankwise.surgery.layers import parametric_layers, replace_
from rankwise.surgery.plan import Plan, PlannedLayer, plan
from rankwise.surgery.select import Select, listing


def adapt_(
    model: nn.Module,
    *,
    rank: int = 8,
    select: Select = None,
    exclude: Select = None,
    min_features: int = 0,
    train: Select = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Plan:
    """Replace linear layers by `W0 + scale * U S V^T` with frozen `W0` and `S = 0`.

    The model computes what it did before. All its parameters are frozen but the new factors and
    those that `train` selects. Factors are float32 (float64 on a float64 weight) on the device of
    the weight. A weight tied to another module stays tied: it is frozen, and adapted here only.

    Args:
        model: changed in place.
        rank: at the start, of every layer, >= 1; clipped to min(out, in).
        select: which linear layers: a glob over names or their dotted ends, a compiled regex, a
            module type, a function of (name, module), or a sequence of these; None for all.
        exclude: which of these not.
        min_features: layers with min(out, in) below this are left as they are.
        train: the same kind of patterns, over modules and parameters that train densely.
        scale: factor of the low-rank part, finite and not 0.
        seed: the initial bases depend on it and on the name of the layer, on nothing else.

    Returns:
        What was done, layer by layer; `print` it.

    Raises:
        ValueError: for a pattern that matches nothing, when no layer is left, when the model is
            already adapted or is itself a linear layer. The model is then unchanged.
    """
    _check_model(model)
    planned = plan(
        model, rank=rank, select=select, exclude=exclude, min_features=min_features, train=train
    )
    if not planned.adapted:
        reasons = dict.fromkeys(f"{p.name}: {p.reason}" for p in planned.layers)
        told = listing(list(reasons)) or "The model has no layer with parameters."
        raise ValueError(f"no layer is left to adapt. {told}")
    ranks = {p.name: p for p in planned.adapted}
    new: dict[str, Factored] = {}
    for layer in parametric_layers(model):
        if layer.name in ranks:
            factors = _initial(layer.module, ranks[layer.name], seed)
            adapter = adapter_for(layer.module, factors, scale)
            new.update(dict.fromkeys(layer.names, adapter))
    model.requires_grad_(False)
    replace_(model, new)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for dense in planned.dense:
        parameters[dense.name].requires_grad_(True)
    return planned


def _initial(base: nn.Module, planned: PlannedLayer, seed: int) -> Factors:
    draw = stream(seed, planned.name)
    return zero_core(*linear_shape(base), planned.rank, generator=draw, like=factor_like(base))


def _check_model(model: nn.Module) -> None:
    check_module(model)
    adapted = list(low_rank_layers(model))
    if adapted:
        raise ValueError(
            f"the model has low-rank layers already: {listing(adapted)}. Select all layers in one "
            "`adapt_`, or end the earlier adaptation with `merge_(model, final=True)`."
        )
    if is_linear(model):
        raise ValueError(
            f"a bare {type(model).__name__} cannot be replaced in place. Wrap it: "
            "`torch.nn.Sequential(layer)`."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model has weights on the meta device; load them before `adapt_`")
