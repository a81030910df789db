"""Whether it is a bound that decides the ranks, and not what layers are worth."""

from collections.abc import Sequence

from rankwise.optim.layers import NamedLayer
from rankwise.optim.rank_rule import CycledRank, RankRule


def bound_that_holds(rule: RankRule, layers: Sequence[NamedLayer]) -> str:
    """What holds the ranks of all of several layers, and what to do; "" where nothing does."""
    if not isinstance(rule, CycledRank) or len(layers) < 2:
        return ""
    ranks = [rank for _, layer in layers for rank in layer.ranks]
    if rule.max_rank is not None and min(ranks) >= rule.max_rank:
        return (
            f"all {len(layers)} layers have rank {rule.max_rank}, `max_rank`, and would have more: "
            "raise it, or take `FixedRank()`, which costs less"
        )
    if max(ranks) <= rule.min_rank:
        return (
            f"all {len(layers)} layers have fallen to rank {rule.min_rank}, `min_rank`: lower "
            "`rtol` or give a larger budget; less weight decay"
        )
    return ""
