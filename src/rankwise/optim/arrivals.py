"""Where all layers of a step end: those that can be stacked together, the others one by one."""

from collections.abc import Sequence

import torch

from rankwise.optim.advance import advance
from rankwise.optim.advance_stack import advance_stack, observe_stack, together
from rankwise.optim.batches import Batches
from rankwise.optim.moving import WAITED, AloneArrival, Arrival, Moving
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import State, UpdateRule


def arrivals_of(
    moving: Sequence[Moving], rule: UpdateRule, control: StepControl, batches: Batches
) -> list[Arrival]:
    """The ends of the steps of all `moving` layers, from one backward pass."""
    stacks, alone = sorted_out(moving, rule)
    return [
        *(advance_stack(members, rule, control) for members in stacks),
        *(AloneArrival(m, advance(m, rule, control, batches)) for m in alone),
    ]


def observe(resting: Sequence[Moving], rule: UpdateRule) -> None:
    """Let `rule` remember the gradients of layers that stay where they are."""
    stacks, alone = sorted_out(resting, rule)
    for members in stacks:
        observe_stack(members, rule)
    for m in alone:
        rule.observe(m.point, m.gradient, m.state)
    for m in resting:
        m.state[WAITED] = m.waited


def sorted_out(
    layers: Sequence[Moving], rule: UpdateRule
) -> tuple[list[list[Moving]], list[Moving]]:
    """Stacks of several layers, and those that are on their own."""
    stacks = [members for members in together(layers, rule) if len(members) > 1]
    stacked = {m.place for members in stacks for m in members}
    alone = [m for m in layers if m.place not in stacked]
    for m in alone:
        in_rows(m.state)
    return stacks, alone


def in_rows(state: State) -> None:
    """Momentum as it comes from a file, row by row and where memory begins.

    Products round by how their factors lie in memory, and a resumed run is to be the same to the
    last bit. In a stack momentum is laid out anew in each step.
    """
    if "momentum" in state:
        rows = torch.contiguous_format
        state["momentum"] = tuple(t.clone(memory_format=rows) for t in state["momentum"])
