"""The step of many layers at once, in a number of calls that does not depend on how many they are.

Layers of one shape and of nearly the same rank are stacked. The lower ranks are filled up with
zeros, which changes nothing: a column of zeros in `U`, `V`, `K`, `L` is no direction. `advance`
says the same of a single layer, and is the reference.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.integrators.integrator import step
from rankwise.nn.factored import Factored
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import times
from rankwise.numerics.retract import Spectrum, whole
from rankwise.numerics.tangent import Tangent
from rankwise.optim.advance import decayed
from rankwise.optim.moving import WAITED, Cut, Moving, Shaping
from rankwise.optim.rank_rule import Candidates
from rankwise.optim.stack import columns, columns_kept, corners, filled, filled_columns
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import State, UpdateRule

RANKS_TOGETHER = 8
"""Ranks in one stack differ by less than this: zeros cost as much as other numbers."""


class StackArrival(NamedTuple):
    """The ends of stacked layers."""

    members: Sequence[Moving]
    start: Factors
    gradient: Tangent
    state: State
    """What the rule remembers, stacked."""
    spectrum: Spectrum

    def candidates(self) -> dict[int, list[Candidates]]:
        found = {}
        for moving, sigma in zip(self.members, self.spectrum.sigma.unbind(), strict=True):
            (mode,) = moving.point.modes()
            # What is behind them belongs to zeros.
            count = min(mode.rank * moving.integrator.widening, *mode.shape)
            found[moving.place] = [moving.candidates(mode, sigma[:count])]
        return found

    def land(self, rule: UpdateRule, cuts: Mapping[int, Cut]) -> None:
        own = [cuts[moving.place] for moving in self.members]
        kept = [one.ranks[0] for one in own]
        new = cut(self.spectrum, kept, [one.shaping for one in own])
        rule.transport(self.start, new, self.gradient, self.state)
        remember(self.members, self.state, kept)
        parts = columns(new.U, kept), corners(new.S, kept), columns(new.V, kept)
        for moving, *factors in zip(self.members, *parts, strict=True):
            moving.state.pop(WAITED, None)
            moving.layer.set_factors_(Factors(*factors))


def together(moving: Sequence[Moving], rule: UpdateRule) -> list[list[Moving]]:
    """Those that can be stacked, by stacks; none of a rule that knows single layers only."""
    stacks: dict[Hashable, list[Moving]] = {}
    for m in moving:
        if rule.stackable and m.integrator.widening and isinstance(m.layer, Factored):
            stacks.setdefault(_kind(m, rule), []).append(m)
    return list(stacks.values())


def _kind(m: Moving, rule: UpdateRule) -> Hashable:
    f = m.point
    counts = {name: v for name in rule.remembers if isinstance(v := m.state.get(name), int)}
    known = tuple(name for name in rule.remembers if name in m.state)
    size = (f.rank - 1) // RANKS_TOGETHER
    device = (f.U.device, f.U.dtype)
    own = (id(m.group), m.integrator, m.waited)
    return f.shape, size, device, own, known, tuple(counts.items())


def observe_stack(members: Sequence[Moving], rule: UpdateRule) -> None:
    """Let `rule` remember the gradients of `members`, which stay where they are."""
    start, gradient, state = _joined_all(members, rule)
    rule.observe(start, gradient, state)
    remember(members, state, [m.point.rank for m in members])


def _joined_all(members: Sequence[Moving], rule: UpdateRule) -> tuple[Factors, Tangent, State]:
    factors = [m.point for m in members]
    rank = max(f.rank for f in factors)
    sizes = [(factors[0].shape[0], rank), (rank, rank), (factors[0].shape[1], rank)]
    U, S, V = zip(*factors, strict=True)
    start = Factors(filled_columns(U, sizes[0]), filled(S, sizes[1]), filled_columns(V, sizes[2]))
    K, L, C = zip(*(m.gradient for m in members), strict=True)
    gradient = Tangent(
        filled_columns(K, sizes[0]), filled_columns(L, sizes[2]), filled(C, sizes[1])
    )
    state = stacked([m.state for m in members], rule, [t.shape[1:] for t in gradient])
    return start, gradient, state


def advance_stack(
    members: Sequence[Moving], rule: UpdateRule, control: StepControl
) -> StackArrival:
    """The ends of the step of `members`, which have all in common that `together` asks for."""
    start, gradient, state = _joined_all(members, rule)
    D = rule.direction(start, gradient, state)

    def take(core: Tensor) -> Tensor:
        core = rule.core(core)
        norms = torch.linalg.vector_norm(core, dim=(-2, -1))
        lengths = [
            control.length(m.layer, norm, m.state, m.group, relative=rule.relative)
            for m, norm in zip(members, norms.unbind(), strict=True)
        ]
        return (waited * as_vector(lengths, norms))[:, None, None] * core

    group, integrator, waited = members[0].group, members[0].integrator, members[0].waited
    end = step(integrator, decayed(start, group, waited), lambda _: D, take)
    return StackArrival(members, start, gradient, state, end)


def as_vector(values: Sequence[Tensor | float], like: Tensor) -> Tensor:
    """Numbers, on the host or on the device, as one vector of the type of `like`."""
    if all(isinstance(v, Tensor) for v in values):
        return torch.stack([v for v in values if isinstance(v, Tensor)]).to(like)
    return torch.tensor([float(v) for v in values], dtype=like.dtype, device=like.device)


def cut(s: Spectrum, ranks: Sequence[int], shapings: Sequence[Shaping]) -> Factors:
    """Each of stacked spectra at its own rank, filled up to the highest of them."""
    width = max(ranks)
    P, Q = (columns_kept(t[..., :width], ranks) for t in (s.P, s.Qh.mT))
    sigma = columns_kept(s.sigma[:, None, :width], ranks)[:, 0]
    if any(shaped is not whole for shaped in shapings):
        rows = zip(sigma.unbind(), ranks, shapings, strict=True)
        sigma = filled([shaped(row[:rank]) for row, rank, shaped in rows], (width,))
    return Factors(times(s.frame.U_hat, P), torch.diag_embed(sigma), times(s.frame.V_hat, Q))


def stacked(states: Sequence[State], rule: UpdateRule, sizes: Sequence[torch.Size]) -> State:
    """What `rule` remembers of layers, as of one; coordinates are filled up to `sizes`."""
    return {
        name: _joined([state[name] for state in states], sizes)
        for name in rule.remembers
        if name in states[0]
    }


def _joined(values: Sequence[Any], sizes: Sequence[torch.Size]) -> Any:
    first = values[0]
    if isinstance(first, tuple):
        (K, L, C), (m, n, r) = zip(*values, strict=True), sizes
        return filled_columns(K, m), filled_columns(L, n), filled(C, r)
    return torch.stack(list(values)) if isinstance(first, Tensor) else first


def remember(members: Sequence[Moving], state: State, ranks: Sequence[int]) -> None:
    """Give each of `members` its part of `state`, coordinates with `ranks` columns."""
    for name, value in state.items():
        parts: Sequence[Any]
        if isinstance(value, tuple):
            K, L, C = value
            parts = list(zip(columns(K, ranks), columns(L, ranks), corners(C, ranks), strict=True))
        else:
            parts = value.unbind() if isinstance(value, Tensor) else [value] * len(members)
        for m, part in zip(members, parts, strict=True):
            m.state[name] = part
