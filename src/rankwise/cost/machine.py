"""What a machine can do, and how long an operation takes on it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rankwise.cost.operation import Operation, Product
from rankwise.cost.rate import Rate


class Machine(NamedTuple):
    """Speeds of one device in one type of numbers; `measure_machine` finds them.

    Products are as fast as their least extent allows; it matters which one that is.
    """

    device: str
    rows: Rate
    """Flops a second of products whose rows are the least extent, by that extent."""
    columns: Rate
    """The same of those whose columns are, in which BLAS is slow."""
    inner: Rate
    """The same of those whose inner length is."""
    stacked: Rate
    """At most so many flops a second has a stack of products, by the cube root of one's size."""
    memory: Rate
    """Bytes a second, read and written, by the bytes of one operation."""
    transcendental: float
    """Numbers a second of which a GELU is computed."""
    random: float
    """Numbers a second that are drawn."""
    orthogonal: Rate
    """Flops a second of a QR, `2 m n^2`, by its columns `n`."""
    singular: Rate
    """Flops a second of an SVD, `20 n^3`, by its size `n`."""
    adamw: Rate
    """Numbers a second that `torch.optim.AdamW` steps, by the numbers of one parameter."""
    call: float
    """Seconds of a call that computes next to nothing."""
    forward_call: float
    """The same in a forward pass, where modules are called and a graph is made."""
    backward_call: float
    """The same in a backward pass."""
    adamw_call: float
    """Seconds that AdamW takes for a parameter of one number."""
    overlaps: bool = False
    """Whether the device computes while the host calls."""

    def seconds(self, operations: Iterable[Operation], call: float | None = None) -> float:
        """Of operations one after another, `call` seconds beside each; by default `self.call`."""
        call = self.call if call is None else call
        busy = calling = 0.0
        for operation in operations:
            busy += operation.often * self._busy(operation)
            calling += operation.often * operation.calls * call
        return max(busy, calling) if self.overlaps else busy + calling

    def adamw_seconds(self, sizes: Sequence[int]) -> float:
        """Of a step of `torch.optim.AdamW` on parameters of these numbers."""
        busy = sum(size / self.adamw.at(size) for size in sizes if size)
        calling = len(sizes) * self.adamw_call
        return max(busy, calling) if self.overlaps else busy + calling

    def _busy(self, operation: Operation) -> float:
        moving = operation.bytes / self.memory.at(operation.bytes) if operation.bytes else 0.0
        computing = self._multiplying(operation.product) if operation.product is not None else 0.0
        thinking = operation.transcendental / self.transcendental + operation.random / self.random
        rows, columns = operation.orthogonal
        if columns:
            thinking += 2.0 * rows * columns**2 / self.orthogonal.at(columns)
        if operation.singular:
            size = operation.singular
            thinking += 20.0 * size**3 / self.singular.at(size)
        return max(moving, computing + thinking)

    def _multiplying(self, product: Product) -> float:
        speeds = {product.rows: self.rows, product.columns: self.columns, product.inner: self.inner}
        least = min(speeds)
        speed = speeds[least].at(least)
        if product.stacked:
            size = product.rows * product.columns * product.inner
            speed = min(speed, self.stacked.at(size ** (1 / 3)))
        return product.flops / speed
