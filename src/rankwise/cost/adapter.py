"""What adapters add to one layer of a frozen model, by its shapes."""

from typing import NamedTuple

from rankwise.cost.operation import Operation, product


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
    optimizer: tuple[Operation, ...]
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
    """Sizes of parameters that AdamW steps, beside `optimizer`."""


FACTOR_BYTES = 4
"""Factors, their gradients and moments are float32."""
BASES_EVERY = 4
"""The bases of a layer move in every so-manieth step, by `rankwise.Optimizer`'s default."""
LORA_CALLS = 8.0
"""Calls beside the products in both passes of a LoRA layer: autograd's, PEFT's own."""
FACTOR_CALLS = 12.0
"""The same of a low-rank layer: transposed factors, the function's own."""
REST_CALLS = 120.0
"""Small operations of `rankwise.Adam` and the retraction on one layer whose bases rest."""
MOVE_CALLS = 160.0
"""The same where they move."""
MOVE_PRODUCTS = 10
"""Products `(m + n) r^2` of that: new coordinates, momentum before and after, the cut."""


def lora(layer: Adapted) -> Added:
    """`y + s (x A^T) B^T`: two factors, trained by AdamW; the way PEFT computes it."""
    m, n, r, b, passes_on, size = layer
    thin, wide = b * r, b * m
    summed = Operation(bytes=5 * wide * size, calls=2)
    forward = (product(b, n, r, size), product(b, r, m, size), summed)
    backward = [
        Operation(bytes=2 * wide * size, calls=LORA_CALLS),
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
        (),
        thin * size,
        1.0,
        numbers,
        numbers,
        2 * numbers,
        (r * n, r * m),
    )


def low_rank(layer: Adapted, *, bases_every: int = BASES_EVERY) -> Added:
    """`y + s x (U S V^T)^T` in one function, trained by `rankwise.Adam`.

    Gradients with respect to `U` and `V`, for which the input is kept, and the linear algebra of
    their step are needed in one of `bases_every` steps; the others train the core alone.
    """
    m, n, r, b, passes_on, size = layer
    moving = 1.0 / bases_every
    forward = (
        product(r, n, b, size),
        product(r, r, b, size),
        product(b, r, m, size),
        Operation(bytes=3 * b * m * size, calls=FACTOR_CALLS / 2),
    )
    backward = [
        product(r, m, b, size),
        product(r, b, r, size),
        Operation(calls=FACTOR_CALLS / 2),
        *_share(moving, product(r, b, m, size), product(r, b, n, size)),
    ]
    if passes_on:
        backward += [
            product(r, r, b, size),
            product(b, r, n, size),
            Operation(bytes=3 * b * n * size),
        ]
    core, factors = r * r, r * (m + n + r)
    return Added(
        forward,
        tuple(backward),
        (*_share(1 - moving, *_rest(r)), *_share(moving, *_move(m, n, r))),
        r * b * size,
        moving,
        factors,
        core + moving * (factors - core),
        factors + m + n + 1,
        (),
    )


def _share(often: float, *operations: Operation) -> list[Operation]:
    return [operation._replace(often=often) for operation in operations]


def _rest(r: int) -> tuple[Operation, ...]:
    """A step of the core: the spectrum of the direction, and of the end."""
    return (Operation(singular=r), Operation(singular=r), Operation(calls=REST_CALLS))


def _move(m: int, n: int, r: int) -> tuple[Operation, ...]:
    """The same at size `2 r`, in augmented bases, which are then cut."""
    return (
        Operation(orthogonal=(m, min(m, 2 * r))),
        Operation(orthogonal=(n, min(n, 2 * r))),
        Operation(singular=min(m, n, 2 * r)),
        Operation(singular=min(m, n, 2 * r)),
        *[product(m + n, r, r, FACTOR_BYTES)] * MOVE_PRODUCTS,
        Operation(calls=MOVE_CALLS),
    )
