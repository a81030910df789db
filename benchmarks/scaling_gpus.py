"""What one of several GPUs sends and holds while a model of given shapes is fine-tuned."""

from collections.abc import Callable
from typing import NamedTuple

from transformer_shapes import Shapes

from rankwise.distributed import cost
from rankwise.distributed.cost import Cost

BFLOAT16, FLOAT32 = 2, 4
LINKS = {"25 Gbit/s": 25e9 / 8, "400 Gbit/s": 400e9 / 8}
"""Bytes a second of a link, each way."""


class Method(NamedTuple):
    name: str
    cost: Callable[[Shapes, int, int], Cost]
    """Of a model, at a rank, on so many processes."""
    trained_size: int = FLOAT32
    """Bytes of a number that trains, of its gradient and its moments."""
    sent_size: int = FLOAT32
    """Bytes of a number of a gradient on the wire."""


class Bytes(NamedTuple):
    """Of one GPU."""

    weights: float
    gradients: float
    moments: float
    gathered: float
    """Sent a step, of weights."""
    reduced: float
    """Sent a step, of gradients."""

    @property
    def held(self) -> float:
        return self.weights + self.gradients + self.moments

    @property
    def sent(self) -> float:
        return self.gathered + self.reduced


def whole(shapes: Shapes, rank: int, processes: int) -> Cost:
    maps = each(shapes, lambda m, n: cost.dense(m, n, processes))
    return maps + cost.dense(shapes.rest, 1, processes)


def whole_sharded(shapes: Shapes, rank: int, processes: int) -> Cost:
    shares = each(shapes, lambda m, n: cost.sharded_dense(m, n, processes))
    return shares + cost.sharded_dense(shapes.rest, 1, processes, gathers=1)


def lora(shapes: Shapes, rank: int, processes: int) -> Cost:
    return replicas(shapes) + each(
        shapes, lambda m, n: cost.two_factors(m, n, min(rank, m, n), processes)
    )


def low_rank(shapes: Shapes, rank: int, processes: int) -> Cost:
    return replicas(shapes) + factors(shapes, rank, processes)


def low_rank_sharded(shapes: Shapes, rank: int, processes: int) -> Cost:
    shares = each(shapes, lambda m, n: cost.sharded_frozen(m, n, processes))
    rest = cost.sharded_frozen(shapes.rest, 1, processes, gathers=1)
    return shares + rest + factors(shapes, rank, processes)


def factors(shapes: Shapes, rank: int, processes: int) -> Cost:
    return each(shapes, lambda m, n: cost.low_rank(m, n, min(rank, m, n), processes))


def replicas(shapes: Shapes) -> Cost:
    return cost.frozen(shapes.total, 1)


def each(shapes: Shapes, of_map: Callable[[int, int], Cost]) -> Cost:
    return sum((of_map(m, n) for m, n in shapes.maps), Cost())


METHODS = (
    Method("full, DDP", whole),
    Method("full, FSDP2", whole_sharded),
    Method("LoRA, DDP", lora),
    Method("rankwise, DDP", low_rank),
    Method("rankwise, DDP, bfloat16 gradients", low_rank, sent_size=BFLOAT16),
    Method("rankwise, FSDP2", low_rank_sharded),
)


def in_bytes(method: Method, shapes: Shapes, rank: int, processes: int) -> Bytes:
    """Frozen weights are in bfloat16, what trains in float32."""
    c = method.cost(shapes, rank, processes)
    whole_trains = c.frozen == 0
    return Bytes(
        weights=BFLOAT16 * c.frozen + FLOAT32 * c.trained,
        gradients=FLOAT32 * c.gradients,
        moments=FLOAT32 * c.moments,
        gathered=(FLOAT32 if whole_trains else BFLOAT16) * c.gathered,
        reduced=method.sent_size * c.reduced,
    )
