"""Factors that are the same on all processes, and one reduction of their gradients.

DDP's reducer lays out its buckets once, from the shapes at its construction, so a factor that
changes its rank must not be in it. Here all factor gradients, the coordinates of the tangent
gradient, are averaged in one flat message at the end of the backward pass. What comes after it
(clipping, scalers of mixed precision, the check for NaN) then sees the same numbers everywhere.
"""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable

from rankwise.distributed.team import Alone, Team
from rankwise.distributed.wrapping import check_wrapping, holds_back, rest_anchors_
from rankwise.nn.low_rank import LowRankModule, low_rank_layers

ALIGN_EVERY = 25
"""Steps between two checks that all processes hold the same factors."""


Wrapper: TypeAlias = "weakref.ref[Any] | None"


class Traffic(NamedTuple):
    """What factor gradients have sent, in messages of one process.

    A ring moves `2 (p - 1) / p` times as much through each of `p` processes.
    """

    messages: int = 0
    bytes: int = 0
    """Of all messages together."""
    last: int = 0
    """Bytes of the last message: those of a step."""


class Replicas(Team):
    """The low-rank layers of one model, on all processes of a group; made by `prepare`.

    `others` are the parameters beside factors that train; `holders` all modules with these
    factors, for several layers may share theirs.

    Attributes:
        layers: by name.
        traffic: what their gradients have sent.
        realigned: how often factors had drifted apart and were replaced by the first process's.
    """

    def __init__(
        self,
        layers: dict[str, LowRankModule],
        group: dist.ProcessGroup | None,
        dtype: torch.dtype | None,
        others: Sequence[Tensor],
        holders: Sequence[LowRankModule],
        wrapper: Wrapper = None,
    ) -> None:
        super().__init__(group)
        self.layers = layers
        self.traffic = Traffic()
        self.realigned = 0
        self._dtype = dtype
        self._backward = -1
        self._wrapper = wrapper
        self._held = False
        self._unsent = False
        self._started = False
        self._holders = holders
        own = weakref.ref(self)

        # Python's collector does not see what a hook holds: one that held its own parameter, or
        # this, would keep the model alive for good.
        def arm(parameter: Tensor) -> None:
            replicas = own()
            if replicas is not None:
                replicas._arm()

        # Others too, for a process may use no low-rank layer at all where others wait for it.
        armed = [*self.factors, *others]
        self._hooks = [p.register_post_accumulate_grad_hook(arm) for p in armed]
        for layer in holders:
            layer.replicas = self

    @property
    def factors(self) -> list[nn.Parameter]:
        """All factors, e.g. for `fully_shard(..., ignored_params=set(replicas.factors))`."""
        return [p for layer in self.layers.values() for p in layer.factor_parameters()]

    @property
    def in_ddp(self) -> bool:
        """Whether DDP, which averages the gradients of all other parameters, holds the model."""
        return self._wrapper is not None and self._wrapper() is not None

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here send nothing, as in DDP's `no_sync`, which has this effect too.

        For accumulation: the mean of sums is sent with the last backward pass, outside. FSDP2 has
        its own `set_requires_gradient_sync`, for what it shards.
        """
        outside, self._held = self._held, True
        try:
            yield
        finally:
            self._held = outside

    def wrapped_in(self, wrapper: nn.Module, model: nn.Module) -> None:
        """DDP, which is being made, takes `model` in: it must leave the factors alone."""
        check_wrapping(wrapper, model, self.factors, self.group)
        rest_anchors_(model)
        self._wrapper = weakref.ref(wrapper)
        self.start()

    def release(self) -> Wrapper:
        """Undo `prepare`; the DDP that holds the model, if any does."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._holders:
            layer.replicas = None
        return self._wrapper

    def start(self) -> None:
        """The first process's ranks and factors on all; ValueError if the layers differ."""
        if not self.together:
            return
        self._started = True
        self._check_layers()
        self._first_shapes()
        if not self.same(self.factors):
            self.take_first_(self.factors)

    def check_steps(self, steps: int) -> None:
        """ValueError if processes have taken other numbers of `steps`, as after loading on one."""
        if not self.same([torch.tensor(steps)]):
            raise ValueError(
                f"the optimizer of process {self.process} has taken {steps} steps, and that of "
                "another process has not: load the same state on every process"
            )

    def check_sent(self) -> None:
        """ValueError if the last backward pass was held back, and gradients differ."""
        if self._unsent and self.together:
            raise ValueError(
                "the last backward pass before this step was within `no_sync()`, and each process "
                "has gradients of its own: let the last one of a step be outside"
            )

    def align(self, moments: Sequence[Tensor]) -> None:
        """Replace factors and `moments` by the first process's, where they are not the same.

        Equal gradients give equal factors on equal machines. On different ones the last bits of a
        QR differ, and add up.
        """
        held = [*self.factors, *moments]
        if self.same(held):
            return
        self.take_first_(held)
        self.realigned += 1
        if self.realigned == 1:
            warnings.warn(
                "the factors of this process and of others had drifted apart and were replaced by "
                "those of the first process. Between different machines that is rounding; "
                "otherwise something on one process changed them. `replicas.realigned` counts it.",
                stacklevel=2,
            )

    def _arm(self) -> None:
        # A backward pass that failed has never called back, so a flag would stay set for good.
        current = torch._C._current_graph_task_id()
        if current != self._backward:
            self._backward = current
            Variable._execution_engine.queue_callback(self._reduce)

    def _waits(self) -> bool:
        wrapper = None if self._wrapper is None else self._wrapper()
        return self._held or (wrapper is not None and holds_back(wrapper))

    @torch.no_grad()
    def _reduce(self) -> None:
        """Average the gradients of all factors; zeros stand for those of layers not used here."""
        self._unsent = self._waits()
        if self._unsent or not self.together:
            return
        if not self._started:
            raise ValueError(
                "there was no process group yet when `rankwise.distributed.prepare(model)` was "
                "called, so the factors may differ: call it after `init_process_group`, or wrap "
                "the model in DistributedDataParallel"
            )
        factors = self.factors
        absent = [p.grad is None for p in factors]
        present = factors[0].new_ones(len(factors))
        if any(absent):
            present.copy_(torch.tensor(absent).logical_not())
        slots = [torch.zeros_like(p) if p.grad is None else p.grad for p in factors]
        (*means, used), size = self.sums([*slots, present], self._dtype)
        self.traffic = Traffic(self.traffic.messages + 1, self.traffic.bytes + size, size)
        torch._foreach_div_(means, float(self.processes))
        torch._foreach_copy_(slots, means)
        if any(absent):
            # Only a process that has not used a layer waits for the device here.
            for p, slot, none, count in zip(factors, slots, absent, used.tolist(), strict=True):
                if none and count > 0:
                    p.grad = slot

    def _check_layers(self) -> None:
        own = [(name, layer.shape, str(layer.U.dtype)) for name, layer in self.layers.items()]
        for rank, other in enumerate(self.gathered(own)):
            if other != own:
                different = set(map(str, own)) ^ set(map(str, other))
                raise ValueError(
                    f"process {rank} has other low-rank layers than process {self.process}, for "
                    f"example {min(different)}. Adapt the same layers of the same model on every "
                    "process; ranks may differ"
                )

    @torch.no_grad()
    def _first_shapes(self) -> None:
        wanted = iter(self.agreed([n for p in self.factors for n in p.shape]))
        for layer in self.layers.values():
            old = layer.factors()
            shapes = [[next(wanted) for _ in t.shape] for t in old]
            if shapes != [list(t.shape) for t in old]:
                layer.set_factors_(old._make(old.U.new_zeros(shape) for shape in shapes))


def replicas_in(model: nn.Module) -> Replicas | None:
    """What `prepare` has made of `model`; None if it was not called."""
    made = (layer.replicas for layer in low_rank_layers(model).values())
    return next((replicas for replicas in made if replicas is not None), None)


def team_of(model: nn.Module) -> Team:
    """The processes that share `model`: those of `prepare`, or this one alone."""
    return replicas_in(model) or Alone()


def writes_files(model: nn.Module) -> bool:
    """Whether this process writes what is saved of `model`: the first of those that share it."""
    return team_of(model).is_first
