"""Trying a compression out: how a model does with its weights cut, before anything is replaced."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from rankwise.surgery.dense_map import DenseMap
from rankwise.surgery.init import Init
from rankwise.surgery.ranks import ranks_by_name
from rankwise.surgery.sites import find_sites
from rankwise.surgery.watch import watchable


@contextmanager
def cut_weights(model: nn.Module, ranks: Mapping[str, int], init: Init) -> Iterator[None]:
    """Within, the weights of `model` are what `factorize_(model, rank=ranks, init=init)` gives.

    The model evaluates, and its weights stay dense, so that several compressions of one model can
    be compared; afterwards they are bit for bit what they were. Raises ValueError for names that
    are no matrix of the model, or one that cannot be low rank.
    """
    found = find_sites(model)
    sites = {name: site for site in found.sites if site.map is not None for name in site.names}
    maps: dict[str, DenseMap] = {}
    for name, rank in ranks_by_name(ranks, {n: s.module for n, s in sites.items()}).items():
        site = sites[name]
        assert site.map is not None
        if site.obstacle:
            raise ValueError(f"layer {name!r} cannot be low rank: {site.obstacle}")
        if rank > min(site.map.shape):
            raise ValueError(f"`ranks[{name!r}]` is {rank}, of a matrix of {site.map.shape}")
        maps[name] = site.map
    before = {name: layer.matrix.clone() for name, layer in maps.items()}
    with watchable(model, found):
        try:
            for name, layer in maps.items():
                layer.set_matrix_(init.factors(name, layer, ranks[name]).dense())
            yield
        finally:
            for name, layer in maps.items():
                layer.set_matrix_(before[name])


def least_keep(
    compress: Callable[[float], float], *, most: float, least: float = 0.0, resolution: float = 0.02
) -> float:
    """The smallest share for which `compress(share)`, a loss, is at most `most`; by bisection.

    Takes `log2(1 / resolution)` trials above `least`, and supposes that the loss falls where the
    share grows.
    Returns 1 where no smaller share will do.
    """
    low, high = least, 1.0
    while high - low > resolution:
        middle = (low + high) / 2
        if compress(middle) <= most:
            high = middle
        else:
            low = middle
    return high
