"""What a client and a server of a federation send, hold and compute for a model of given shapes."""

from collections.abc import Callable
from typing import NamedTuple

from transformer_shapes import Shapes

from rankwise.federated import cost
from rankwise.federated.cost import RoundCost

BFLOAT16, FLOAT32 = 2, 4
UP, DOWN, SERVER = 10e6 / 8, 100e6 / 8, 10e9 / 8
"""Bytes a second: of a client's link to and from the server, and of the server's each way."""

OfMatrix = Callable[[int, int, int], RoundCost]
Flops = Callable[[int, int, int, int], int]


class Method(NamedTuple):
    name: str
    cost: Callable[[Shapes, int], RoundCost]
    """Of a model at a rank."""
    flops: Flops
    """Of a local step in one map."""
    direction_size: int = FLOAT32
    """Bytes of a number of a direction by which bases grow."""


class Round(NamedTuple):
    """A client's share of a round, in bytes, and products of its local steps."""

    exchanges: int
    down: float
    up: float
    kept: float
    """By the client in the last phase, beside its model."""
    served: float
    """Held by the server beside its model, for all participants."""
    flops: float
    """Of the maps in blocks, for one token in one local step."""

    @property
    def both(self) -> float:
        return self.down + self.up


def of_maps(of_map: OfMatrix) -> Callable[[Shapes, int], RoundCost]:
    """Adapters: nothing but factors trains."""

    def all_maps(shapes: Shapes, rank: int) -> RoundCost:
        first, *others = (of_map(m, n, min(rank, m, n)) for m, n in shapes.maps)
        return sum(others, first)

    return all_maps


def of_all(
    of_map: OfMatrix, of_rest: Callable[[int], RoundCost]
) -> Callable[[Shapes, int], RoundCost]:
    """Factors in place of the maps: what is no map in a block trains as well."""

    def everything(shapes: Shapes, rank: int) -> RoundCost:
        return of_maps(of_map)(shapes, rank) + of_rest(shapes.rest)

    return everything


def on_a_base(flops: Flops) -> Flops:
    return lambda m, n, rank, rows: cost.frozen_flops(m, n, rows) + flops(m, n, rank, rows)


FEDAVG = Method(
    "FedAvg",
    lambda shapes, rank: cost.fedavg(shapes.total),
    lambda m, n, rank, rows: cost.dense_flops(m, n, rows),
)
FULL = (cost.fedlrt_full, cost.fedlrt_full_dense)
FEDLRT = (
    ("FeDLRT, no correction", cost.fedlrt, cost.fedlrt_dense, FLOAT32),
    ("FeDLRT, simplified", cost.fedlrt_simplified, cost.fedlrt_simplified_dense, FLOAT32),
    ("FeDLRT, full", *FULL, FLOAT32),
    ("FeDLRT, full, bfloat16 directions", *FULL, BFLOAT16),
)
ADAPTERS = (
    Method("LoRA factors averaged", of_maps(cost.factor_average), on_a_base(cost.two_factor_flops)),
    *(
        Method(name, of_maps(matrix), on_a_base(cost.core_flops), size)
        for name, matrix, _, size in FEDLRT
    ),
)
WHOLE = tuple(
    Method(name, of_all(matrix, dense), cost.core_flops, size)
    for name, matrix, dense, size in FEDLRT
)


def round_of(method: Method, shapes: Shapes, rank: int, participants: int) -> Round:
    c = method.cost(shapes, rank).in_bytes(FLOAT32, method.direction_size)
    return Round(
        exchanges=len(c.phases),
        down=c.down,
        up=c.up,
        kept=c.client_memory,
        served=c.server_memory(participants),
        flops=sum(method.flops(m, n, min(rank, m, n), 1) for m, n in shapes.maps),
    )
