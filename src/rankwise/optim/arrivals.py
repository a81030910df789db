"""Where all layers of a step end: those that can be stacked together, the others one by one."""

from collections.abc import Sequence

from rankwise.optim.advance import advance
from rankwise.optim.advance_stack import advance_stack, observe_stack, together
from rankwise.optim.batches import Batches
from rankwise.optim.moving import WAITED, AloneArrival, Arrival, Moving
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import UpdateRule


def arrivals_of(
    moving: Sequence[Moving], rule: UpdateRule, control: StepControl, batches: Batches
) -> list[Arrival]:
    """The ends of the steps of all `moving` layers, from one backward pass."""
    stacks = [members for members in together(moving, rule) if len(members) > 1]
    stacked = {m.place for members in stacks for m in members}
    alone = (m for m in moving if m.place not in stacked)
    return [
        *(advance_stack(members, rule, control) for members in stacks),
        *(AloneArrival(m, advance(m, rule, control, batches)) for m in alone),
    ]


def observe(resting: Sequence[Moving], rule: UpdateRule) -> None:
    """Let `rule` remember the gradients of layers that stay where they are."""
    stacks = together(resting, rule)
    for members in stacks:
        observe_stack(members, rule)
    stacked = {m.place for members in stacks for m in members}
    for m in resting:
        if m.place not in stacked:
            rule.observe(m.point, m.gradient, m.state)
        m.state[WAITED] = m.waited
