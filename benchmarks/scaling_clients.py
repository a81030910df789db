"""What a client and a server of a federation send in a round for a model of given shapes."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from transformer_shapes import Shapes

from rankwise.federated import cost
from rankwise.federated.cost import Traffic

FLOAT32 = 4
BFLOAT16 = 2
UP, DOWN, SERVER = 10e6 / 8, 100e6 / 8, 10e9 / 8
"""Bytes a second: of a client's link each way, and of the server's each way."""

Phases = tuple[Traffic, ...]


class Method(NamedTuple):
    name: str
    traffic: Callable[[Shapes, int], Iterable[Traffic]]
    """Of one client, at a rank."""
    exchanges: int
    """Requests to a client and answers in a round."""


def everything(shapes: Shapes, rank: int) -> Iterable[Traffic]:
    return cost.fedavg(shapes.total)


def of_maps(of_map: Callable[[int, int, int], Phases]) -> Callable[[Shapes, int], list[Traffic]]:
    """Adapters: nothing but factors trains."""

    def traffic(shapes: Shapes, rank: int) -> list[Traffic]:
        return [t for m, n in shapes.maps for t in of_map(m, n, min(rank, m, n))]

    return traffic


def of_all(
    of_map: Callable[[int, int, int], Phases], *, correct: bool
) -> Callable[[Shapes, int], list[Traffic]]:
    """Factors in place of the maps, from scratch: what is not a map in a block trains as well."""

    def traffic(shapes: Shapes, rank: int) -> list[Traffic]:
        rest = [*cost.fedavg(shapes.rest), *[cost.corrected(shapes.rest)] * correct]
        return [*of_maps(of_map)(shapes, rank), *rest]

    return traffic


FEDAVG = Method("FedAvg", everything, 1)
ADAPTERS = (
    Method("LoRA factors averaged", of_maps(cost.factor_average), 1),
    Method("FeDLRT, no correction", of_maps(cost.fedlrt), 2),
    Method("FeDLRT, simplified", of_maps(cost.fedlrt_simplified), 2),
    Method("FeDLRT, full", of_maps(cost.fedlrt_full), 3),
)
WHOLE = (
    Method("FeDLRT, no correction", of_all(cost.fedlrt, correct=False), 2),
    Method("FeDLRT, simplified", of_all(cost.fedlrt_simplified, correct=True), 2),
    Method("FeDLRT, full", of_all(cost.fedlrt_full, correct=True), 3),
)


class Bytes(NamedTuple):
    """Of one client in one round, float32."""

    down: float
    up: float

    @property
    def both(self) -> float:
        return self.down + self.up


def in_bytes(method: Method, shapes: Shapes, rank: int) -> Bytes:
    both = cost.total(method.traffic(shapes, rank))
    return Bytes(FLOAT32 * both.down, FLOAT32 * both.up)
