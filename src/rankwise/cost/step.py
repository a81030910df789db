"""What a training step of a model takes: frozen, in low rank, with LoRA, and in full."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.cost.adapter import FACTOR_BYTES, Adapted, Added, lora, low_rank
from rankwise.cost.machine import Machine
from rankwise.cost.measure import measure_machine
from rankwise.cost.operation import Operation
from rankwise.cost.table import sentence, table
from rankwise.cost.trace import Trace, trace
from rankwise.cost.turn import taking_turns
from rankwise.nn.base import linear_shape
from rankwise.optim.adam import Adam


class StepCost(NamedTuple):
    """Seconds and bytes of one training step, as predicted."""

    forward: float
    backward: float
    optimizer: float
    weights: int
    """Bytes of all weights, those of adapters too."""
    gradients: int
    """After the backward pass; where inputs are kept in some steps only, on average."""
    state: int
    """Of the optimizer."""
    saved: int
    """Activations that are kept for the backward pass."""
    peak: int
    """At the worst moment of a step."""

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.optimizer


@dataclass(frozen=True)
class StepCosts:
    """The same step four times; `print` it."""

    frozen: StepCost
    """The model as it is, with the gradients that go through it to the first adapted layer."""
    low_rank: StepCost
    """This plan, trained by `rankwise.Optimizer`."""
    lora: StepCost
    """PEFT's LoRA of the same ranks, with AdamW."""
    full: StepCost
    """Every floating-point parameter, with AdamW."""
    products: float
    """Seconds that the frozen model's products alone take, in both passes."""

    def rows(self) -> dict[str, StepCost]:
        """By the name that a table gives them."""
        return {
            "frozen": self.frozen,
            "low rank": self.low_rank,
            "LoRA": self.lora,
            "full": self.full,
        }

    def __str__(self) -> str:
        return "\n".join([*table(self.rows()), "", sentence(self.rows(), self.products)])


def step_costs(
    model: nn.Module,
    run: Callable[[], Any],
    *,
    ranks: Mapping[str, int],
    dense: Sequence[nn.Parameter] = (),
    machine: Machine | None = None,
    turns: int = Adam.turns,
    inputs_every: int = 1,
) -> StepCosts:
    """What a step would take with adapters on some linear maps of `model`; changes nothing.

    Two passes are watched, forward and backward, of the frozen model and of the whole. What
    adapters and optimizers add follows from shapes. Seconds are a roofline: of each operation the
    longer of its computing and its moving of bytes, and the time of the call (Williams, Waterman
    and Patterson, 2009). A loss is counted where the model returns one.

    Args:
        model: without low-rank layers.
        run: calls it on a batch.
        ranks: of the layers to be adapted, by name, >= 1.
        dense: parameters that train beside them.
        machine: what it trains on; None: it is measured, where the model is.
        turns: as `rankwise.Optimizer(turns=...)`: a layer moves in one step of so many, >= 1.
        inputs_every: as `rankwise.Optimizer(inputs_every=...)`, >= 1.

    Raises:
        ValueError: where the output depends on nothing that trains, for `turns` or `inputs_every`
            below 1, or for a model on the meta device without `machine`.
    """
    for name, count in {"turns": turns, "inputs_every": inputs_every}.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1 step, got {count}")
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    if machine is None and device.type == "meta":
        measure_machine(device)
    layers = {name: model.get_submodule(name) for name in ranks}
    beside = {id(p) for p in dense}
    bare = trace(model, run, trains=lambda p: id(p) in beside, layers=layers)
    whole = trace(model, run, trains=lambda p: True, layers={})
    if machine is None:
        machine = measure_machine(device, bare.dtype or torch.float32)
    weights = _bytes([*model.parameters(), *model.buffers()])
    everything = [p for p in model.parameters() if p.is_floating_point()]
    maps = [
        Adapted(*linear_shape(layers[name]), rank, met.rows, met.passes_on, met.size)
        for (name, rank), met in zip(ranks.items(), bare.meetings.values(), strict=True)
        if met.rows
    ]
    inputs = _inputs(bare)
    return StepCosts(
        frozen=_step(bare, [], 0, weights, dense, machine),
        low_rank=_step(
            bare,
            [low_rank(layer, inputs_every=inputs_every) for layer in maps],
            inputs,
            weights,
            dense,
            machine,
            taking_turns(maps, turns),
        ),
        lora=_step(bare, [lora(layer) for layer in maps], inputs, weights, dense, machine),
        full=_step(whole, [], 0, weights, everything, machine),
        products=machine.seconds(
            o._replace(calls=0.0) for o in (*bare.forward, *bare.backward) if o.product is not None
        ),
    )


def _step(
    seen: Trace,
    added: Sequence[Added],
    inputs: int,
    weights: int,
    dense: Sequence[nn.Parameter],
    machine: Machine,
    optimizer: Sequence[Operation] = (),
) -> StepCost:
    """Of the pass `seen` with what adapters add, `inputs` bytes of theirs kept by nobody else.

    The optimizer does `optimizer` beside the step of AdamW.
    """
    dense_bytes = sum(p.numel() * p.element_size() for p in dense)
    sizes = [p.numel() for p in dense] + [size for a in added for size in a.stepped]
    gradients = dense_bytes + round(FACTOR_BYTES * sum(a.gradients for a in added))
    state = 2 * dense_bytes + FACTOR_BYTES * sum(a.moments for a in added)
    weights += FACTOR_BYTES * sum(a.trained for a in added)
    saved = round(sum(a.saved for a in added) + _mean([a.keeps_input for a in added]) * inputs)
    # AdamW makes two new tensors of a parameter, on an accelerator one of all of them at once.
    scratch = FACTOR_BYTES * (sum(sizes) if machine.overlaps else 2 * max(sizes, default=0))
    return StepCost(
        forward=machine.seconds(
            (*seen.forward, *(o for a in added for o in a.forward)), machine.forward_call
        ),
        backward=machine.seconds(
            (*seen.backward, *(o for a in added for o in a.backward)), machine.backward_call
        ),
        optimizer=machine.seconds(optimizer) + machine.adamw_seconds(sizes),
        weights=weights,
        gradients=gradients,
        state=state,
        saved=sum(seen.saved.values()) + saved,
        peak=weights + state + max(seen.peak + saved, gradients + scratch),
    )


def _inputs(bare: Trace) -> int:
    """Bytes of inputs of adapted layers that the frozen model does not keep for itself."""
    inputs = {k: size for met in bare.meetings.values() for k, size in met.inputs.items()}
    return sum(size for k, size in inputs.items() if k not in bare.saved)


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = (t.untyped_storage() for t in tensors)
    return sum({s._cdata: s.nbytes() for s in storages}.values())
