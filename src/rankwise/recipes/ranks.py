"""The rank rule that the options of the command line ask for."""

from collections.abc import Sequence

from rankwise.optim.budget import Budget
from rankwise.optim.layers import NamedLayer, numbers_held
from rankwise.optim.rank_rule import FixedRank, RankRule
from rankwise.optim.tolerance import Tolerance
from rankwise.recipes.options import FinetuneOptions

CYCLES, LONGEST_CYCLE = 6, 25


def chosen_rank_rule(options: FinetuneOptions, layers: Sequence[NamedLayer]) -> RankRule:
    """Without a word, a budget of half of the starting parameters.

    A short run has shorter cycles, so that it too ends where it was asked to. Raises ValueError for
    a budget with less than one direction a layer.
    """
    if options.fixed_rank:
        return FixedRank()
    every = min(LONGEST_CYCLE, max(2, options.total_steps // CYCLES))
    if options.rtol is not None:
        return Tolerance(rtol=options.rtol, every=every)
    costs = [sum(layer.shape) + 1 for _, layer in layers]
    budget = (
        max(numbers_held(layers) // 2, sum(costs)) if options.budget is None else options.budget
    )
    if budget < sum(costs):
        raise ValueError(
            f"--budget must be at least {sum(costs)}, one direction for each of the {len(layers)} "
            f"layers, got {budget}. Adapt fewer layers with --select."
        )
    return Budget(parameters=budget, every=every)
