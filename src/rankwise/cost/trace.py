"""Watching one forward and backward pass: operations, what is kept for backward, the peak."""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.cost.operation import Operation, observed, tensors


@dataclass
class Meeting:
    """What one layer met, summed over its calls."""

    rows: int = 0
    """Vectors that it took."""
    size: int = 0
    """Bytes of a number that it put out."""
    inputs: dict[int, int] = field(default_factory=dict)
    """Memory of its inputs that the pass made: identity and bytes."""
    passes_on: bool = False
    """Whether its input has a gradient."""


@dataclass(frozen=True)
class Trace:
    """Of one pass, forward and backward."""

    forward: tuple[Operation, ...]
    backward: tuple[Operation, ...]
    saved: dict[int, int]
    """Memory kept for backward, without parameters and inputs: identity and bytes."""
    peak: int
    """Most bytes alive at once beside weights: activations, gradients, intermediate results."""
    meetings: dict[str, Meeting]
    """Of the layers that were watched."""
    dtype: torch.dtype | None
    """Of the largest product."""


def trace(
    model: nn.Module,
    run: Callable[[], Any],
    *,
    trains: Callable[[nn.Parameter], bool],
    layers: Mapping[str, nn.Module],
) -> Trace:
    """One training step without its optimizer, in which parameters with `trains(parameter)` train.

    The outputs of `layers` have a gradient even where nothing before them trains, as if there was
    an adapter. Real tensors are computed with, those on the meta device only have shapes. Modes,
    gradients, buffers and random state are afterwards what they were.

    Args:
        model: it trains (dropout is on).
        run: calls it; its result's loss, or else all its floating-point tensors, is what the
            backward pass begins with.
        trains: whether a floating-point parameter does.
        layers: the layers to be watched, by name.

    Raises:
        ValueError: where nothing in the output depends on what trains.
    """
    meetings = {name: Meeting() for name in layers}
    recorder = _Recorder()
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_as_it_was(model))
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point() and trains(p))
            if p.requires_grad:
                stack.callback(p.register_post_accumulate_grad_hook(recorder.drop_gradient).remove)
        for name, layer in layers.items():
            for handle in _watch(layer, meetings[name], recorder):
                stack.callback(handle.remove)
        stack.enter_context(recorder)
        with saved_tensors_hooks(recorder.keep, lambda t: t):
            out = run()
        ends = _ends(out)
        if not ends and (layers or any(p.requires_grad for p in model.parameters())):
            raise ValueError(
                "nothing in the model's output depends on a layer that is to be adapted or on "
                "`train`, so that there is no backward pass. Does the model detach its output, or "
                "run without gradients?"
            )
        recorder.operations = recorder.backward
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        del out, ends
    return Trace(
        tuple(recorder.forward),
        tuple(recorder.backward),
        recorder.saved,
        recorder.peak,
        meetings,
        recorder.dtype,
    )


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.forward: list[Operation] = []
        self.backward: list[Operation] = []
        self.operations = self.forward
        self.saved: dict[int, int] = {}
        self.peak = 0
        self._alive = 0
        self._gradients = 0
        self.dtype: torch.dtype | None = None
        self._most = 0.0
        # An identity is one for good only as long as somebody holds on to it.
        self._held: list[Any] = []
        self._known: set[int] = set()
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for t in tensors((args, kwargs)):
            # What is seen here first comes from outside.
            self._meet(t.untyped_storage())
        out = func(*args, **kwargs)
        operation = observed(func, args, kwargs, out)
        if operation is not None:
            self.operations.append(operation)
            self._look_at_type(operation, out)
        for t in tensors(out):
            self._born(t.untyped_storage())
        return out

    def keep(self, t: Tensor) -> Tensor:
        if self.made(t):
            storage = t.untyped_storage()
            self.saved[storage._cdata] = storage.nbytes()
        return t

    def made(self, t: Tensor) -> bool:
        """Whether the pass made the memory of `t`: it is no parameter and no input."""
        return t.untyped_storage()._cdata in self._made

    def drop_gradient(self, p: Tensor) -> None:
        assert p.grad is not None
        self._gradients += p.grad.numel() * p.grad.element_size()
        p.grad = None

    def _look_at_type(self, operation: Operation, out: Any) -> None:
        if operation.product is not None and operation.product.flops >= self._most:
            self._most = operation.product.flops
            self.dtype = tensors(out)[0].dtype

    def _meet(self, storage: Any) -> bool:
        """Whether it is new."""
        if storage._cdata in self._known:
            return False
        self._known.add(storage._cdata)
        self._held.append(StorageWeakRef(storage))
        return True

    def _born(self, storage: Any) -> None:
        if not self._meet(storage):
            return
        self._made.add(storage._cdata)
        self._alive += storage.nbytes()
        weakref.finalize(storage, self._died, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self._alive + self._gradients)

    def _died(self, size: int) -> None:
        self._alive -= size


class _Beginning(Function):
    """`y` as it is, with a gradient that goes nowhere. A leaf would be kept until the end."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, start: Tensor) -> Tensor:
        # Unlike a view it may be worked on in place, as by `nn.ReLU(inplace=True)`.
        same: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
        return same

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, None]:
        return None, None


def _watch(layer: nn.Module, meeting: Meeting, recorder: _Recorder) -> Iterator[Any]:
    start = torch.zeros((), requires_grad=True)

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = (*inputs, *named.values())[0]
        if recorder.made(x):
            storage = x.untyped_storage()
            meeting.inputs[storage._cdata] = storage.nbytes()
        meeting.rows += math.prod(x.shape[:-1])
        meeting.passes_on |= x.requires_grad

    def after(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor | None:
        meeting.size = y.element_size()
        return None if y.requires_grad else _Beginning.apply(y, start)

    yield layer.register_forward_pre_hook(before, with_kwargs=True)
    yield layer.register_forward_hook(after)


def _ends(out: Any) -> list[Tensor]:
    """Where the backward pass begins."""
    loss = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if isinstance(loss, Tensor):
        out = loss
    tree = dict(out) if isinstance(out, Mapping) else out
    return [t for t in tensors(tree) if t.requires_grad]


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Within, `model` trains; afterwards nothing has changed."""
    modes = {module: module.training for module in model.modules()}
    trained = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers() if not b.is_meta]
    used = {t.device for t in (*model.parameters(), *model.buffers())}
    with ExitStack() as stack:
        for device in (d for d in used if d.type not in ("cpu", "meta")):
            stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
        stack.enter_context(torch.random.fork_rng([]))
        try:
            for p, _, _ in trained:
                p.grad = None
            model.train()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for p, trains, gradient in trained:
                p.grad = gradient
                p.requires_grad_(trains)
            for buffer, value in buffers:
                # By `data`: for a graph that is still alive it has never changed.
                buffer.data.copy_(value)
