"""Which rank each layer gets, of what was asked for, or why it stays dense."""

from collections.abc import Mapping

from torch import nn

from rankwise.surgery.dense_map import DenseMap
from rankwise.surgery.plan import check_rank
from rankwise.surgery.select import near_names
from rankwise.surgery.sites import Site

Ranks = int | Mapping[str, int]


def ranks_by_name(rank: Ranks, maps: Mapping[str, nn.Module]) -> dict[str, int]:
    """The rank asked for of each layer; ValueError or TypeError for one that cannot be."""
    if not isinstance(rank, Mapping):
        check_rank(rank)
        return dict.fromkeys(maps, rank)
    for name, value in rank.items():
        if name not in maps:
            near = near_names(name, list(maps))
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"`rank`: the model has no matrix named {name!r}.{hint}")
        check_rank(value, f"rank[{name!r}]")
    return dict(rank)


def unwanted(
    site: Site, wanted: dict[str, int], chosen: set[str], excluded: set[str], min_features: int
) -> str:
    """Why a layer that could be low rank was not asked to be, or ""."""
    if not any(name in wanted and name in chosen for name in site.names):
        return "not selected"
    if not excluded.isdisjoint(site.names):
        return "excluded"
    assert site.map is not None
    if min(site.map.shape) < min_features:
        return f"smaller than min_features={min_features}"
    return ""


def rank_of(site: Site, wanted: dict[str, int]) -> int:
    """The rank asked for of a layer, by any of its names."""
    return next(wanted[name] for name in site.names if name in wanted)


def _most(layer: DenseMap) -> int:
    """The highest rank that saves something; may be 0."""
    most = 0
    while layer.thin_numel(most + 1) < layer.matrix.numel() and most < max(layer.shape):
        most += 1
    return most


def break_even(m: int, n: int) -> int:
    """The highest rank at which two factors hold fewer numbers than the matrix; may be 0."""
    return (m * n - 1) // (m + n)


def saves_nothing(site: Site, wanted: dict[str, int]) -> str:
    """Why a layer stays dense at the rank asked for, or ""."""
    assert site.map is not None
    rank = rank_of(site, wanted)
    if site.map.thin_numel(rank) < site.map.matrix.numel():
        return ""
    most = _most(site.map)
    return f"rank {rank} would save nothing" + (f": at most {most} does" if most else "")


def agree_(sites: list[Site], ranks: dict[str, int], reasons: dict[str, str]) -> None:
    """Layers that share a weight are low rank together, at one rank, or none of them is."""
    for site in sites:
        for other in site.shared:
            if not ranks[site.name]:
                continue
            if not ranks[other]:
                reason = f"its weight is also that of {other}, which stays dense"
                ranks[site.name], reasons[site.name] = 0, reason
            elif ranks[other] != ranks[site.name]:
                raise ValueError(
                    f"`rank`: {site.name!r} and {other!r} share one weight, but have rank "
                    f"{ranks[site.name]} and {ranks[other]}"
                )
