"""Numbers that one process sends and holds for one matrix (m, n) of a model, by how it trains.

All counts are of numbers, not bytes: a frozen base, what trains and what travels may be of
different types. A layer that has a frozen base and factors costs the sum of the two.
"""

from dataclasses import dataclass, fields

FLAGS = 3
"""Numbers that travel with the gradient of a matrix: whether each factor took part in the pass."""


@dataclass(frozen=True)
class Cost:
    """Of one process. Costs of several matrices, or of the parts of one, add up."""

    frozen: float = 0
    """Held, of weights that do not train."""
    trained: float = 0
    """Held, of weights that train."""
    gradients: float = 0
    """Held from backward to step."""
    moments: float = 0
    """Held by the optimizer."""
    reduced: float = 0
    """Sent in one step, of gradients."""
    gathered: float = 0
    """Sent in one step, of weights that are sharded over the processes."""

    def __add__(self, other: "Cost") -> "Cost":
        names = [field.name for field in fields(self)]
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})


def ring_all_gather(numbers: float, processes: int) -> float:
    """`numbers (p - 1) / p`: sent by each process until all have the whole, or as many to reduce.

    A reduce-scatter is the same ring run for sums.
    """
    _check(processes)
    return numbers * (processes - 1) / processes


def ring_all_reduce(numbers: float, processes: int) -> float:
    """`2 numbers (p - 1) / p`: a reduce-scatter and an all-gather.

    No other way sends less in sum (Patarasuk and Yuan, 2009).
    """
    return 2 * ring_all_gather(numbers, processes)


def tangent_gradient(m: int, n: int, rank: int) -> int:
    """`r (m + n + r)` numbers of `dK` (m, r), `dL` (n, r) and `dS` (r, r); `U`, `V`, `S` alike."""
    return rank * (m + n + rank)


def tangent_moments(m: int, n: int, rank: int) -> int:
    """`r (m + n + r) + m + n + 1` numbers that `rankwise.Adam` keeps.

    Momentum in tangent space, a second moment of each row and column, and one for all.
    """
    return tangent_gradient(m, n, rank) + m + n + 1


def dense(m: int, n: int, processes: int) -> Cost:
    """A dense weight under DDP, with AdamW."""
    size = m * n
    return Cost(
        trained=size, gradients=size, moments=2 * size, reduced=ring_all_reduce(size, processes)
    )


def two_factors(m: int, n: int, rank: int, processes: int) -> Cost:
    """`A` (r, n) and `B` (m, r) of LoRA under DDP, with AdamW; without the base."""
    size = rank * (m + n)
    return Cost(
        trained=size, gradients=size, moments=2 * size, reduced=ring_all_reduce(size, processes)
    )


def low_rank(m: int, n: int, rank: int, processes: int) -> Cost:
    """`U`, `S`, `V` on every process, with `rankwise.Adam`; without a base.

    Beside the gradient the first process tells the ranks, 8 bytes a matrix in a step that changes
    them.
    """
    size = tangent_gradient(m, n, rank)
    return Cost(
        trained=size,
        gradients=size,
        moments=tangent_moments(m, n, rank),
        reduced=ring_all_reduce(size + FLAGS, processes),
    )


def frozen(m: int, n: int) -> Cost:
    """A frozen weight, whole on every process."""
    return Cost(frozen=m * n)


def sharded_frozen(m: int, n: int, processes: int, *, gathers: int = 2) -> Cost:
    """A frozen weight under FSDP2: a share on each process, gathered when it is needed.

    What is held for the time of a gather, one block of layers at a time, comes on top.

    Args:
        m: rows of the weight.
        n: columns of the weight.
        processes: how many share it; where they do not divide m, the last share is padded.
        gathers: all-gathers in a step: one for each pass, forward and backward, or a single one
            for what is kept between them, as FSDP2 does with the parameters of the root.
    """
    size = m * n
    return Cost(frozen=size / processes, gathered=gathers * ring_all_gather(size, processes))


def sharded_dense(m: int, n: int, processes: int, *, gathers: int = 2) -> Cost:
    """A dense weight under FSDP2 with AdamW; its gradient is reduced to shares.

    `gathers` as for `sharded_frozen`.
    """
    size = m * n
    share = size / processes
    return Cost(
        trained=share,
        gradients=share,
        moments=2 * share,
        reduced=ring_all_gather(size, processes),
        gathered=gathers * ring_all_gather(size, processes),
    )


def _check(processes: int) -> None:
    if processes < 1:
        raise ValueError(f"`processes` must be at least 1, got {processes}")
