"""Factors that are the same on all processes, and one reduction of their gradients.

DDP's reducer lays out its buckets once, from the shapes at its construction, so a factor that
changes its rank must not be in it. Here all factor gradients, the coordinates of the tangent
gradient, are averaged in one flat message at the end of the backward pass. What comes after it
(clipping, scalers of mixed precision, the check for NaN) then sees the same numbers everywhere.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable

from rankwise.distributed.anchor import is_anchor
from rankwise.distributed.flat import carried, first, flatten, pieces, same_everywhere
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


class Replicas:
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
        self.layers = layers
        self.traffic = Traffic()
        self.realigned = 0
        self._group = group
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
    def processes(self) -> int:
        """Number of processes; 1 before there is a process group."""
        return dist.get_world_size(self._group) if self._together() else 1

    @property
    def process(self) -> int:
        """Number of this process, from 0."""
        return dist.get_rank(self._group) if self._together() else 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.process == 0

    @property
    def in_ddp(self) -> bool:
        """Whether DDP, which averages the gradients of all other parameters, holds the model."""
        return self._wrapper is not None and self._wrapper() is not None

    def gathered(self, value: Any) -> list[Any]:
        """What every process has as `value`, on all of them; tensors in it are on the CPU."""
        values = [value] * self.processes
        if self._together():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def once(self, write: Callable[[], Any]) -> None:
        """Let the first process `write`; all go on when that is done, and all fail if it fails."""
        error: Exception | None = None
        if self.is_first:
            try:
                write()
            except Exception as raised:
                error = raised
        failures = self.gathered(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        if failures[0] is not None:
            raise RuntimeError(f"the first process could not write: {failures[0]}")

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
        ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
        own = {id(p) for p in self.factors}
        named = dict(model.named_parameters())
        missed = [n for n, p in named.items() if id(p) in own and n not in ignored]
        if missed:
            raise ValueError(
                f"DDP wraps a {type(model).__name__}, but `rankwise.distributed.prepare` was "
                f"called for another module, such as a part of it, and DDP would reduce "
                f"{missed[0]!r}. Call `rankwise.distributed.prepare(model)` with the module that "
                "is wrapped"
            )
        others: Any = wrapper.process_group
        groups = [dist.get_process_group_ranks(g) for g in (others, self._group)]
        if groups[0] != groups[1]:
            raise ValueError(
                f"DDP averages over the processes {groups[0]}, and the factors of the model over "
                f"{groups[1]}: give `prepare(group=...)` and DDP's `process_group=` the same group"
            )
        # Where others train, DDP would wait for the gradient of an anchor in vain.
        trained = [n for n, p in named.items() if p.requires_grad and n not in ignored]
        if not all(map(is_anchor, trained)):
            for name in filter(is_anchor, trained):
                named[name].requires_grad_(False)
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
        if not self._together():
            return
        self._started = True
        self._check_layers()
        self._first_shapes()
        if not same_everywhere(self.factors, self._group):
            self._first_values(self.factors)

    def check_steps(self, steps: int) -> None:
        """ValueError if processes have taken other numbers of `steps`, as after loading on one."""
        if self._together() and not same_everywhere([torch.tensor(steps)], self._group):
            raise ValueError(
                f"the optimizer of process {self.process} has taken {steps} steps, and that of "
                "another process has not: load the same state on every process"
            )

    def check_sent(self) -> None:
        """ValueError if the last backward pass was held back, and gradients differ."""
        if self._unsent and self._together():
            raise ValueError(
                "the last backward pass before this step was within `no_sync()`, and each process "
                "has gradients of its own: let the last one of a step be outside"
            )

    def agreed(self, ranks: list[int]) -> list[int]:
        """The first process's choice, for singular values may differ in their last bits."""
        if not self._together() or not ranks:
            return ranks
        message = torch.tensor(ranks, dtype=torch.int64)
        return [int(r) for r in first(message, self._group).tolist()]

    @torch.no_grad()
    def align(self, moments: Sequence[Tensor]) -> None:
        """Replace factors and `moments` by the first process's, where they are not the same.

        Equal gradients give equal factors on equal machines. On different ones the last bits of a
        QR differ, and add up.
        """
        held = [*self.factors, *moments]
        if not self._together() or same_everywhere(held, self._group):
            return
        self._first_values(held)
        self.realigned += 1
        if self.realigned == 1:
            warnings.warn(
                "the factors of this process and of others had drifted apart and were replaced by "
                "those of the first process. Between different machines that is rounding; "
                "otherwise something on one process changed them. `replicas.realigned` counts it.",
                stacklevel=2,
            )

    def _together(self) -> bool:
        ready = dist.is_available() and dist.is_initialized()
        return ready and dist.get_world_size(self._group) > 1

    def _arm(self) -> None:
        # A backward pass that failed has never called back, so a flag would stay set for good.
        current = torch._C._current_graph_task_id()
        if current != self._backward:
            self._backward = current
            Variable._execution_engine.queue_callback(self._reduce)

    def _waits(self) -> bool:
        wrapper = None if self._wrapper is None else self._wrapper()
        if wrapper is None:
            return self._held
        if wrapper._join_config.enable:
            raise ValueError(
                "`join()` lets a process that has run out of batches answer for DDP's parameters, "
                "and not for the factors of low-rank layers. Give all processes equally many "
                "batches, e.g. by `DataLoader(..., drop_last=True)` or a `DistributedSampler`"
            )
        return self._held or not wrapper.require_backward_grad_sync

    @torch.no_grad()
    def _reduce(self) -> None:
        """Average the gradients of all factors; zeros stand for those of layers not used here."""
        self._unsent = self._waits()
        if self._unsent or not self._together():
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
        flat = carried(flatten([*slots, present], self._dtype), self._group)
        dist.all_reduce(flat, group=self._group)
        size = flat.numel() * flat.element_size()
        self.traffic = Traffic(self.traffic.messages + 1, self.traffic.bytes + size, size)
        *means, used = pieces(flat, [*slots, present])
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
                    f"process {rank} has other low-rank layers than process "
                    f"{dist.get_rank(self._group)}, for example {min(different)}. Adapt the same "
                    "layers of the same model on every process; ranks may differ"
                )

    @torch.no_grad()
    def _first_shapes(self) -> None:
        sizes = torch.tensor([n for p in self.factors for n in p.shape], dtype=torch.int64)
        wanted = iter(int(n) for n in first(sizes, self._group).tolist())
        for layer in self.layers.values():
            old = layer.factors()
            shapes = [[next(wanted) for _ in t.shape] for t in old]
            if shapes != [list(t.shape) for t in old]:
                layer.set_factors_(old._make(old.U.new_zeros(shape) for shape in shapes))

    @torch.no_grad()
    def _first_values(self, held: Sequence[Tensor]) -> None:
        flat = first(flatten(held), self._group)
        for t, value in zip(held, pieces(flat, held), strict=True):
            t.detach().copy_(value)


def replicas_in(model: nn.Module) -> Replicas | None:
    """What `prepare` has made of `model`; None if it was not called."""
    made = (layer.replicas for layer in low_rank_layers(model).values())
    return next((replicas for replicas in made if replicas is not None), None)


def writes_files(model: nn.Module) -> bool:
    """Whether this process writes what is saved of `model`: the first of those that share it."""
    replicas = replicas_in(model)
    return replicas is None or replicas.is_first
