"""What one operation has to do: products, bytes, numbers that take long to compute."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class Product(NamedTuple):
    """A product of (rows, inner) by (inner, columns), or what runs as one."""

    rows: int
    columns: int
    inner: int
    flops: float
    """Two for each multiplication with its addition."""
    stacked: bool = False
    """Whether it is many of these, in one call; `flops` is then that of all."""


class Operation(NamedTuple):
    """One call; what it takes adds up but for products and bytes, which overlap."""

    product: Product | None = None
    bytes: float = 0.0
    """Read and written in memory."""
    transcendental: float = 0.0
    """Numbers of which an exponential or the like is computed."""
    random: float = 0.0
    """Numbers that are drawn."""
    orthogonal: tuple[int, int] = (0, 0)
    """Shape of a matrix that is decomposed by QR."""
    singular: int = 0
    """Size of a square matrix that is decomposed by SVD."""
    calls: float = 1.0
    often: float = 1.0
    """How often it is done in a step, on average."""


def product(rows: int, inner: int, columns: int, size: int) -> Operation:
    """`(rows, inner) @ (inner, columns)` of numbers of `size` bytes."""
    moved = (rows * inner + inner * columns + rows * columns) * size
    return Operation(Product(rows, columns, inner, 2.0 * rows * inner * columns), moved)


TRANSCENDENTAL = frozenset(
    "gelu gelu_backward silu silu_backward mish mish_backward softplus softplus_backward elu "
    "elu_backward sigmoid tanh exp log erf sin cos pow _softmax _safe_softmax _log_softmax "
    "_log_softmax_backward_data".split()
)
"""Operations that compute an exponential or the like of each number that they put out."""
RANDOM = frozenset(
    "native_dropout bernoulli rand rand_like randn randn_like normal uniform".split()
)
LOOKUPS = "embedding index_select gather index".split()
"""They read as much of their first argument as they put out."""
UNWRITTEN = ("empty", "new_empty")
"""They allocate, and write nothing."""

aten = torch.ops.aten


def observed(func: Any, args: Any, kwargs: Any, out: Any) -> Operation | None:
    """What a call of torch's `func` did, by the shapes alone; None if it puts out no tensor.

    A view moves nothing, but is a call: in a transformer there are more of them than of others.
    """
    name = func.__name__.partition(".")[0]
    inputs, outputs = tensors((args, kwargs)), tensors(out)
    if not outputs:
        return None
    view = _is_view(inputs, outputs) and not func._schema.is_mutable
    if view or name.startswith(UNWRITTEN):
        return Operation()
    numbers, out_of_place = max(t.numel() for t in outputs), name.removesuffix("_")
    return Operation(
        _product(func, args, kwargs, out),
        _moved(name, inputs, outputs),
        _pairs(inputs) if "attention" in name else numbers * (out_of_place in TRANSCENDENTAL),
        numbers * (out_of_place in RANDOM),
    )


def tensors(tree: Any) -> list[Tensor]:
    """All in a tree of containers but sparse and nested ones, which have no one storage."""
    found = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return [t for t in found if t.layout == torch.strided]


def _is_view(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    own, given = ({t.untyped_storage()._cdata for t in group} for group in (outputs, inputs))
    return own <= given


def _moved(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> float:
    written = sum(map(_bytes, outputs))
    if name in LOOKUPS:
        return 2 * written
    return written + sum(map(_bytes, {id(t): t for t in inputs}.values()))


def _bytes(t: Tensor) -> int:
    # An expanded tensor repeats what it has.
    return min(t.numel() * t.element_size(), t.untyped_storage().nbytes())


def _pairs(inputs: list[Tensor]) -> int:
    """Of a query and a key, each of which has one exponential."""
    q, k = [t for t in inputs if t.ndim == 4][:2]
    return math.prod(q.shape[:-1]) * k.shape[-2]


def _product(func: Any, args: Any, kwargs: Any, out: Any) -> Product | None:
    packet = func._overloadpacket
    if packet in flop_registry:
        flops = float(flop_registry[packet](*args, **kwargs, out_val=out))
        return Product(*_extent(packet, args, out), flops, packet in STACKED)
    if packet is _ATTENTION:
        q, k, v = args[:3]
        flops = float(sdpa_flop_count(q.shape, k.shape, v.shape))
        return Product(q.shape[-2], k.shape[-2], q.shape[-1], flops)
    if packet is _ATTENTION_BACKWARD:
        dy, q, k, v = args[:4]
        flops = float(sdpa_backward_flop_count(dy.shape, q.shape, k.shape, v.shape))
        return Product(q.shape[-2], k.shape[-2], q.shape[-1], flops)
    return None


STACKED = (aten.bmm, aten.baddbmm)
_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward


def _extent(packet: Any, args: Any, out: Any) -> tuple[int, int, int]:
    """Rows, columns and inner length of what a counted operation runs as."""
    if packet in (aten.mm, aten.bmm):
        return args[0].shape[-2], args[1].shape[-1], args[0].shape[-1]
    if packet in (aten.addmm, aten.baddbmm):
        return args[1].shape[-2], args[2].shape[-1], args[1].shape[-1]
    if "convolution" in str(packet) or "conv2d" in str(packet):
        x, weight = args[1:3] if packet is aten.convolution_backward else args[:2]
        y = args[0] if packet is aten.convolution_backward else out
        return y.numel() // y.shape[1], weight.shape[0], weight[0].numel()
    q, k = [t for t in args if isinstance(t, Tensor) and t.ndim >= 3][:2]
    return q.shape[-2], k.shape[-2], q.shape[-1]
