"""Numbers that server and client send, hold and compute in one round, by what trains and how.

Of one matrix (m, n) or of so many dense numbers; the costs of all parts of a model add up. Counts
are of numbers, until `in_bytes`. `W = U S V^T` has rank r at the start of a round; in it the bases
grow to p = min(m, 2r) and q = min(n, 2r) columns. Products are counted for b rows of input.
"""

from dataclasses import dataclass
from typing import NamedTuple

from rankwise.distributed.cost import tangent_gradient


class Exchange(NamedTuple):
    """Numbers between the server and one client in one phase."""

    down: int
    """From the server."""
    up: int
    """To the server."""
    directions_down: int = 0
    """Of those from the server, directions by which bases grow (`FeDLRT(direction_dtype=...)`)."""
    directions_up: int = 0
    """Of those to the server, directions."""

    def in_bytes(self, size: int, direction_size: int) -> "Exchange":
        """The same, where a number has `size` bytes and one of a direction `direction_size`."""
        saved = size - direction_size
        return Exchange(
            size * self.down - saved * self.directions_down,
            size * self.up - saved * self.directions_up,
            direction_size * self.directions_down,
            direction_size * self.directions_up,
        )


@dataclass(frozen=True)
class RoundCost:
    """Of a round with one client; `a + b` is that of two parts of a model."""

    phases: dict[str, Exchange]
    """By name, in order."""
    own: int = 0
    """Kept by the client for the last phase, its own gradient, which the correction takes away."""

    @property
    def down(self) -> int:
        return sum(t.down for t in self.phases.values())

    @property
    def up(self) -> int:
        return sum(t.up for t in self.phases.values())

    @property
    def client_memory(self) -> int:
        """Held by the client in the last phase beside its model, what it was told and its own."""
        return self.down + self.own

    def server_memory(self, participants: int) -> int:
        """Held by the server beside its model, what it told and the largest answer of each."""
        return self.down + participants * max(t.up for t in self.phases.values())

    def __add__(self, other: "RoundCost") -> "RoundCost":
        if list(self.phases) != list(other.phases):
            raise ValueError(
                f"costs of different methods do not add up: phases {', '.join(self.phases)} and "
                f"{', '.join(other.phases)}"
            )
        both = {
            name: Exchange(*map(sum, zip(t, other.phases[name], strict=True)))
            for name, t in self.phases.items()
        }
        return RoundCost(both, self.own + other.own)

    def in_bytes(self, size: int = 4, direction_size: int | None = None) -> "RoundCost":
        """The same in bytes, where a number has `size`; one of a direction may have fewer."""
        small = size if direction_size is None else direction_size
        phases = {name: t.in_bytes(size, small) for name, t in self.phases.items()}
        return RoundCost(phases, size * self.own)


class Grown(NamedTuple):
    """Columns of both bases after they have grown."""

    left: int
    right: int

    @property
    def core(self) -> int:
        """Numbers of the core between them."""
        return self.left * self.right


def grown(m: int, n: int, rank: int) -> Grown:
    """`min(m, 2r)` and `min(n, 2r)`: a basis has no more columns than rows."""
    return Grown(min(m, 2 * rank), min(n, 2 * rank))


def new_columns(m: int, n: int, rank: int) -> int:
    """`(p - r) m + (q - r) n` numbers by which the bases grow, `(m + n) r` at most."""
    p, q = grown(m, n, rank)
    return (p - rank) * m + (q - rank) * n


def fedavg(numbers: int) -> RoundCost:
    """Dense parameters under `FedAvg`, m n for a matrix, and under `FactorAverage`."""
    return RoundCost({"train": Exchange(numbers, numbers)})


def factor_average(m: int, n: int, rank: int) -> RoundCost:
    """`U`, `S`, `V` down, `B` and `A` up."""
    return RoundCost({"train": Exchange(tangent_gradient(m, n, rank), (m + n) * rank)})


def fedlrt(m: int, n: int, rank: int) -> RoundCost:
    """Without correction: `3 (m + n) r + 5 r^2` both ways, where both bases can double."""
    asked, new = (m + n) * rank, new_columns(m, n, rank)
    first = Exchange(tangent_gradient(m, n, rank), asked, directions_up=asked)
    last = Exchange(new, grown(m, n, rank).core, directions_down=new)
    return RoundCost({"gradient": first, "train": last})


def fedlrt_simplified(m: int, n: int, rank: int) -> RoundCost:
    """With simplified correction: `r^2` more each way, the gradient of the core of rank r."""
    core = RoundCost({"gradient": Exchange(0, rank**2), "train": Exchange(rank**2, 0)}, own=rank**2)
    return fedlrt(m, n, rank) + core


def fedlrt_full(m: int, n: int, rank: int) -> RoundCost:
    """With full correction: `p q` more each way, the gradient of the grown core; three phases."""
    plain, core = fedlrt(m, n, rank), grown(m, n, rank).core
    return RoundCost(
        {
            "gradient": plain.phases["gradient"],
            "correction": plain.phases["train"],
            "train": Exchange(core, core),
        },
        own=core,
    )


def fedlrt_dense(numbers: int) -> RoundCost:
    """Dense parameters beside the matrices, without correction."""
    return RoundCost({"gradient": Exchange(numbers, 0), "train": Exchange(0, numbers)})


def fedlrt_simplified_dense(numbers: int) -> RoundCost:
    """The same with simplified correction: their gradient, up and down, is as large as they are."""
    both = Exchange(numbers, numbers)
    return RoundCost({"gradient": both, "train": both}, own=numbers)


def fedlrt_full_dense(numbers: int) -> RoundCost:
    """The same with full correction."""
    phases = {
        "gradient": Exchange(numbers, 0),
        "correction": Exchange(0, numbers),
        "train": Exchange(numbers, numbers),
    }
    return RoundCost(phases, own=numbers)


def dense_flops(m: int, n: int, rows: int) -> int:
    """`6 b m n`: forward and backward of a dense weight that trains."""
    return 6 * rows * m * n


def frozen_flops(m: int, n: int, rows: int) -> int:
    """`4 b m n`: forward and backward through a frozen base; those of its factors come on top."""
    return 4 * rows * m * n


def two_factor_flops(m: int, n: int, rank: int, rows: int) -> int:
    """`6 b r (m + n)`: forward and backward of `B A` of LoRA."""
    return 6 * rows * rank * (m + n)


def tangent_flops(m: int, n: int, rank: int, rows: int) -> int:
    """`6 b r (m + n + r)`: forward, and backward to `dK`, `dL`, `dS`, of the first phase."""
    return 6 * rows * tangent_gradient(m, n, rank)


def core_flops(m: int, n: int, rank: int, rows: int) -> int:
    """`4 b (p m + q n) + 6 b p q`: forward and backward of a local step, which moves the core."""
    p, q = grown(m, n, rank)
    return 4 * rows * (p * m + q * n) + 6 * rows * p * q
