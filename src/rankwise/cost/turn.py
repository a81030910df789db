"""What `rankwise.Optimizer` does in a step, by stacks of layers of one shape and rank."""

from collections.abc import Iterable

from rankwise.cost.adapter import FACTOR_BYTES, Adapted
from rankwise.cost.operation import Operation, product
from rankwise.optim.advance_stack import RANKS_TOGETHER

STEP_CALLS = 40.0
"""Small operations of a step, whatever the layers."""
REST_CALLS = 30.0
"""Of a stack whose layers rest: the rule remembers their gradients."""
MOVE_CALLS = 290.0
"""Of a stack whose layers move."""
RESTING_CALLS = 24.0
"""Of each layer that rests: views, what is stacked and taken apart."""
MOVING_CALLS = 45.0
"""Of each layer that moves."""
REST_SUMS = 5
"""Elementwise operations on (m, r) and on (n, r), two tensors in and one out: they are counted by
their bytes, copies into stacks included."""
MOVE_SUMS = 18
"""The same where layers move."""
PROJECTIONS = 4
"""Products `(r, m) @ (m, r)` of that, and as many `(m, r) @ (r, r)`: half of them are the rule's,
half carry momentum along."""


def taking_turns(layers: Iterable[Adapted], turns: int) -> tuple[Operation, ...]:
    """An average step in which `1 / turns` of `layers` move and the others rest."""
    stacks: dict[tuple[int, int, int], list[int]] = {}
    for m, n, rank, *_ in layers:
        stacks.setdefault((m, n, (rank - 1) // RANKS_TOGETHER), []).append(rank)
    operations = [Operation(calls=STEP_CALLS)] if stacks else []
    for (m, n, _), ranks in stacks.items():
        # The lower ranks are filled up.
        rank, moving = max(ranks), len(ranks) / turns
        resting = len(ranks) - moving
        operations += _share(moving, _move(m, n, rank, max(1.0, moving)))
        operations += _share(resting, _rest(m, n, rank, max(1.0, resting)))
    return tuple(operations)


def _share(count: float, operations: Iterable[Operation]) -> list[Operation]:
    """Of a stack of `count` layers: of less than one in as many steps as there is one at all."""
    return [o._replace(often=o.often * min(1.0, count)) for o in operations]


def _rest(m: int, n: int, r: int, count: float) -> list[Operation]:
    return [*_sums(REST_SUMS, m, n, r, count), Operation(calls=REST_CALLS + RESTING_CALLS * count)]


def _move(m: int, n: int, r: int, count: float) -> list[Operation]:
    """Augmented bases, the spectra of the direction and of the end, which is cut."""
    u, v = min(m, 2 * r), min(n, 2 * r)
    singular = Operation(singular=min(u, v), calls=0.0, often=count)
    return [
        *(Operation(orthogonal=shape, calls=0.0, often=count) for shape in ((m, u), (n, v))),
        singular,
        singular,
        *(
            _stacked(count, *extents)
            for side, wide in ((m, u), (n, v))
            for extents in (
                *[(r, side, r), (side, r, r)] * PROJECTIONS,
                (side, wide, r),
            )
        ),
        *_sums(MOVE_SUMS, m, n, r, count),
        Operation(calls=MOVE_CALLS + MOVING_CALLS * count),
    ]


def _stacked(count: float, rows: int, inner: int, columns: int) -> Operation:
    one = product(rows, inner, columns, FACTOR_BYTES)
    assert one.product is not None
    stack = one.product._replace(flops=count * one.product.flops, stacked=True)
    return one._replace(product=stack, bytes=count * one.bytes, calls=0.0)


def _sums(sums: int, m: int, n: int, r: int, count: float) -> list[Operation]:
    """`a + b` of (m, r) and of (n, r) of all layers."""
    sides = [Operation(bytes=3 * FACTOR_BYTES * count * side * r, calls=0.0) for side in (m, n)]
    return sides * sums
