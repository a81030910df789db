"""Nested Python values with tensors in them, as JSON and a list of tensors; no pickle.

JSON alone would turn tuples into lists and the keys of a dict into strings. Here a container is
written as `{tag: content}`: "tuple", "list", "dict" and "Counter" (as pairs of key and value), and
"tensor" (its index). Python writes a float so that it is read back exactly.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def flatten(value: Any, tensors: list[Tensor], where: str) -> Any:
    """The JSON form of `value`; its tensors are appended to `tensors`.

    Raises TypeError, naming the place below `where`, for what neither JSON nor a tensor can hold.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (tuple, list)):
        parts = [flatten(part, tensors, f"{where}[{i}]") for i, part in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(value, dict):
        pairs = [
            [flatten(k, tensors, f"key of {where}"), flatten(v, tensors, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return {"Counter" if isinstance(value, Counter) else "dict": pairs}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which cannot be saved; numbers, strings, tensors, "
        "lists, tuples and dicts can"
    )


def unflatten(node: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse of `flatten`; ValueError for anything that `flatten` does not write."""
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, dict) and len(node) == 1:
        tag, content = next(iter(node.items()))
        if tag == "tensor" and type(content) is int and 0 <= content < len(tensors):
            return tensors[content]
        if tag in _BUILD and isinstance(content, list):
            return _BUILD[tag](content, tensors)
    raise ValueError(f"not a value that rankwise has written: {str(node)[:80]}")


def _pairs(content: list[Any], tensors: Sequence[Tensor]) -> dict[Any, Any]:
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in content):
        raise ValueError("a dict must be a list of pairs")
    return {unflatten(k, tensors): unflatten(v, tensors) for k, v in content}


_BUILD: Mapping[str, Callable[[list[Any], Sequence[Tensor]], Any]] = {
    "list": lambda content, tensors: [unflatten(part, tensors) for part in content],
    "tuple": lambda content, tensors: tuple(unflatten(part, tensors) for part in content),
    "dict": _pairs,
    "Counter": lambda content, tensors: Counter(_pairs(content, tensors)),
}
