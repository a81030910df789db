"""What adapters add to one layer of a frozen model, by its shapes."""

from typing import NamedTuple

from rankwise.cost.operation import Operation, product
from rankwise.nn.function import WIDE


class Adapted(NamedTuple):
    """A linear map (m, n) with an adapter, and what it meets in a step."""

    m: int
    """Numbers that it puts out for each row."""
    n: int
    """Numbers that it takes."""
    rank: int
    rows: int
    """Vectors that it takes, in all calls of a step."""
    passes_on: bool
    """Whether its input has a gradient."""
    size: int
    """Bytes of a number of its activations."""


class Added(NamedTuple):
    """What an adapter adds to a step of the frozen model."""

    forward: tuple[Operation, ...]
    backward: tuple[Operation, ...]
    saved: float
    """Bytes kept for backward beside the layer's input."""
    keeps_input: float
    """Share of the steps in which the input is kept."""
    trained: int
    """Numbers in its factors."""
    gradients: float
    """Numbers in their gradients, on average."""
    moments: int
    """Numbers that the optimizer keeps."""
    stepped: tuple[int, ...]
    """Sizes of parameters that AdamW steps."""


FACTOR_BYTES = 4
"""Factors, their gradients and moments are float32."""
FACTOR_CALLS = (18.0, 5.0)
"""Calls of a low-rank layer's own in both passes, beside the products: checks, transposes."""


def lora(layer: Adapted) -> Added:
    """`y + s (x A^T) B^T`: two factors, trained by AdamW; the way PEFT computes it."""
    m, n, r, b, passes_on, size = layer
    thin, wide = b * r, b * m
    summed = Operation(bytes=5 * wide * size, calls=2)
    forward = (product(b, n, r, size), product(b, r, m, size), summed)
    backward = [
        Operation(bytes=2 * wide * size),
        product(b, m, r, size),
        product(m, b, r, size),
        product(r, b, n, size),
    ]
    if passes_on:
        backward += [product(b, r, n, size), Operation(bytes=3 * b * n * size)]
    numbers = r * (m + n)
    return Added(
        forward,
        tuple(backward),
        thin * size,
        1.0,
        numbers,
        numbers,
        2 * numbers,
        (r * n, r * m),
    )


def low_rank(layer: Adapted, *, inputs_every: int = 1) -> Added:
    """`y + s x (U S V^T)^T` in one function, trained by `rankwise.Optimizer`.

    The input, and the gradient of `V` for which it is kept, are needed in one of `inputs_every`
    steps.
    """
    m, n, r, b, passes_on, size = layer
    keeps = 1.0 / inputs_every
    forward, backward = FACTOR_CALLS
    ahead = (
        _thin(r, n, b, size),
        product(b, r, r, size),
        _into(b, r, m, size),
        Operation(calls=forward),
    )
    back = [
        _thin(r, m, b, size),
        _thin(r, b, m, size),
        product(r, b, r, size),
        _thin(r, b, n, size)._replace(often=keeps),
        Operation(calls=backward),
    ]
    if passes_on:
        back += [product(b, r, r, size), _into(b, r, n, size)]
    factors = r * (m + n + r)
    return Added(
        ahead,
        tuple(back),
        r * b * size,
        keeps,
        factors,
        factors - (1.0 - keeps) * r * n,
        factors + m + n + 1,
        (),
    )


def _thin(rank: int, inner: int, long: int, size: int) -> Operation:
    """Small ranks are the rows of a product, for which BLAS is faster; others its columns."""
    rows, columns = (rank, long) if rank < WIDE else (long, rank)
    return product(rows, inner, columns, size)


def _into(rows: int, inner: int, columns: int, size: int) -> Operation:
    """A product that is added to what is there."""
    one = product(rows, inner, columns, size)
    return one._replace(bytes=one.bytes + rows * columns * size)
