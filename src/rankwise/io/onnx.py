"""Export of a plain model as ONNX, compared with what ONNX Runtime computes of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rankwise.io.atomic import replacing
from rankwise.io.plain import check_plain
from rankwise.surgery.places import call
from rankwise.surgery.watch import evaluating

INSTALL = 'pip install "rankwise[onnx]"'
TOLERANCE = 1e-4


@dataclass(frozen=True)
class OnnxExport:
    """What was written; `print` it."""

    path: Path
    size: int
    """Bytes."""
    differences: dict[int, float]
    """Largest absolute difference between ONNX Runtime and torch, by batch size."""

    def __str__(self) -> str:
        told = (f"{d:.1e} for a batch of {n}" for n, d in self.differences.items())
        return (
            f"{self.path}: {self.size:,} bytes\n"
            f"largest difference to torch in ONNX Runtime: {', '.join(told)}"
        )


def export_onnx(
    model: nn.Module, example: Any, path: str | Path, *, tolerance: float = TOLERANCE
) -> OnnxExport:
    """Write one file, for batches of any size, and run it on two of them.

    Args:
        model: as `rankwise.shrink` or `rankwise.densify_` made it; unchanged. It is exported in
            evaluation mode.
        example: an input of the model: a tensor, a tuple of tensors or a dict of named ones. The
            first dimension of each is the batch.
        path: a file; what was there is replaced when the new one has passed.
        tolerance: largest difference to torch, relative to `1 + max |y|`.

    Raises:
        ImportError: without the extra `onnx`.
        TypeError: for an example of something else than tensors.
        ValueError: for a model with low-rank layers, or tensors without a common batch.
        RuntimeError: if ONNX Runtime computes something else than torch. Nothing is written then.
    """
    check_plain(model)
    batch = _batch(example)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX needs onnx, onnxscript and onnxruntime: {INSTALL}") from error
    # torch.export takes a dimension of size 1 for a constant.
    several = example if batch > 1 else _repeated(example, 2)
    differences = {}
    with torch.no_grad(), evaluating(model), replacing(Path(path)) as temporary:
        _program(model, several).save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for size in (batch, 2 * batch + 1):
            x = example if size == batch else _repeated(example, size)
            differences[size] = _difference(model, session, x, size, tolerance)
        written = temporary.stat().st_size
    return OnnxExport(Path(path), written, differences)


def _program(model: nn.Module, example: Any) -> Any:
    named = isinstance(example, Mapping)
    args = () if named else example if isinstance(example, tuple) else (example,)
    any_batch = {0: torch.export.Dim.DYNAMIC}
    return torch.onnx.export(
        model,
        args,
        kwargs=dict(example) if named else None,
        dynamic_shapes=dict.fromkeys(example, any_batch) if named else (any_batch,) * len(args),
        dynamo=True,
        verbose=False,
    )


def _difference(model: nn.Module, session: Any, example: Any, size: int, tolerance: float) -> float:
    expected = [y for y in tree_leaves(call(model, example)) if isinstance(y, Tensor)]
    names = [given.name for given in session.get_inputs()]
    if not isinstance(example, Mapping):
        example = dict(zip(names, _tensors(example), strict=True))
    inputs = {name: t.detach().cpu().numpy() for name, t in example.items()}
    got = session.run(None, inputs)
    largest = 0.0
    for one, y in zip(got, expected, strict=True):
        error = float((torch.from_numpy(one) - y.cpu()).abs().max())
        if not error <= tolerance * (1 + float(y.abs().max())):
            raise RuntimeError(
                f"ONNX Runtime differs from torch by {error:.1e} on a batch of {size}: does the "
                "model compute other things for other batches? Nothing was written."
            )
        largest = max(largest, error)
    return largest


def _tensors(example: Any) -> list[Tensor]:
    tensors = list(example.values()) if isinstance(example, Mapping) else example
    tensors = list(tensors) if isinstance(tensors, (tuple, list)) else [tensors]
    wrong = [type(t).__name__ for t in tensors if not isinstance(t, Tensor)]
    if wrong:
        raise TypeError(f"`example` must consist of tensors, got {', '.join(wrong)}")
    return tensors


def _batch(example: Any) -> int:
    tensors = _tensors(example)
    sizes = {len(t) if t.ndim else 0 for t in tensors}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(
            f"the tensors of `example` must have one batch in their first dimension, got {shapes}"
        )
    return sizes.pop()


def _repeated(example: Any, size: int) -> Any:
    """The example with its rows repeated up to `size` of them."""
    if isinstance(example, Mapping):
        return {name: _repeated(t, size) for name, t in example.items()}
    if isinstance(example, tuple):
        return tuple(_repeated(t, size) for t in example)
    return example[torch.arange(size, device=example.device) % len(example)]
