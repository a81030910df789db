"""Layers take turns: which of them move in a step, and how long the others have waited."""

from collections.abc import Sequence

from rankwise.optim.moving import Moving
from rankwise.optim.rank_rule import Clock, RankRule


def in_turn(
    present: Sequence[Moving], turns: int, clock: Clock, rank_rule: RankRule
) -> tuple[list[Moving], list[Moving]]:
    """Of the layers of a step those that move, and those that stay where they are.

    A layer moves in one step of `turns`, and all do in the first step and where ranks may change,
    for there they are compared.
    """
    if clock.step == 1 or rank_rule.may_change(clock):
        return list(present), []
    moving: list[Moving] = []
    resting: list[Moving] = []
    for m in present:
        # A layer that is not in every pass may never be in one of its turn.
        due = (clock.step - 1 + m.place) % turns == 0 or m.waited >= turns
        (moving if due else resting).append(m)
    return moving, resting
