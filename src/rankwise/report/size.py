"""How large what an optimizer trains is."""

from rankwise.nn.low_rank import LowRankModule
from rankwise.optim.optimizer import Optimizer


def trained_parameters(optimizer: Optimizer) -> int:
    """In the form that runs: thin layers, or dense where that is less and there is no base."""
    layers = [layer for _, layer in optimizer.layers]
    factors = {id(p) for layer in layers for p in layer.factor_parameters()}
    owned = (p for group in optimizer.param_groups for p in group["params"])
    return sum(p.numel() for p in owned if id(p) not in factors) + sum(map(_running, layers))


def _running(layer: LowRankModule) -> int:
    if layer.base is not None:
        return layer.thin_numel
    return min(layer.thin_numel, layer.dense_numel)
