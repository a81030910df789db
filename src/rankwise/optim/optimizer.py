"""The optimizer: factors on their manifolds of low rank, everything else by AdamW."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rankwise.distributed.prepare import check_layouts
from rankwise.distributed.replicas import Replicas
from rankwise.distributed.sharded import all_usable, shard_
from rankwise.integrators.integrator import Integrator
from rankwise.integrators.parallel_bug import ParallelBUG
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.given import check_number
from rankwise.numerics.manifold import TangentVector
from rankwise.numerics.retract import whole
from rankwise.numerics.svd import NoSVD
from rankwise.optim.adam import Adam
from rankwise.optim.advance import has_gradient
from rankwise.optim.arguments import (
    check_closure,
    check_combination,
    check_comparable,
    check_conditioning,
    check_control,
    check_inputs_every,
    check_kind,
    check_layers,
    check_options,
    check_turns,
)
from rankwise.optim.arrivals import arrivals_of, observe
from rankwise.optim.batches import Batches
from rankwise.optim.conditioning import Conditioning, shaping
from rankwise.optim.continuing import (
    check_parts,
    check_ranks_kept,
    check_remembered,
    check_saved_ranks,
    saved_parts,
    take_over,
)
from rankwise.optim.guard import Guard, Incidents
from rankwise.optim.layers import param_groups, trainable_layers
from rankwise.optim.moving import WAITED, AloneArrival, Arrival, Cut, Moving, Shaping
from rankwise.optim.norms import gradient_norm, scale_to_
from rankwise.optim.ownership import Version, check_untouched, claim, owner_of, record
from rankwise.optim.rank_rule import Clock, FixedRank, RankRule
from rankwise.optim.reevaluation import advance_together, check_deterministic
from rankwise.optim.rest import INPUT, count_inputs, let_rest, wake
from rankwise.optim.statistics import Statistics
from rankwise.optim.step_control import StepControl
from rankwise.optim.together import (
    align,
    check_parameters,
    check_whole_gradient,
    ranks_by,
    replicas_of,
    warn_if_alone,
)
from rankwise.optim.trust import Trust
from rankwise.optim.turns import in_turn
from rankwise.optim.update_rule import State, UpdateRule, with_mean_outside
from rankwise.optim.watch import Held, Watch

DEFAULT_MAX_STEP = 0.002
COPIED = (
    "layers",
    "rule",
    "rank_rule",
    "integrator",
    "control",
    "conditioning",
    "turns",
    "inputs_every",
    "guard",
    "steps",
    "skipped",
    "incidents",
    "_model",
)
"""Attributes beyond torch's that a copy of an optimizer has."""


class Optimizer(torch.optim.Optimizer):
    """Trains a model with low-rank layers; ranks adapt inside `step()`, nothing else to call.

    Each low-rank layer takes the step `W - h * direction` in `span[U, K] x span[V, L]` and is
    retracted to the ranks that the rank rule allows; momentum is carried along. All other trainable
    parameters take an AdamW step. A step with a non-finite gradient is skipped and counted.

    Args:
        model: with layers from `rankwise.adapt_`, or built of `LowRankLinear`, `LowRankConv2d`
            and `nn.TuckerConv2d`; its trainable parameters are found by itself.
        lr: learning rate, >= 0; works with the schedulers of `torch.optim.lr_scheduler`. For `Adam`
            and `Spectral` it is the relative change of a weight in one step (for gradients without
            noise), the same number for small and large models, 3e-3 by default; for `SGD` and
            `HeavyBall` a plain rate. Dense parameters take it as AdamW's. With `RateFree` only its
            course over time has an effect, not its size; 1 by default.
        rule: update rule of the low-rank layers; `Spectral` is for matrices only.
        rank_rule: how ranks adapt.
        integrator: how a step is taken, one of `rankwise.integrators`; all but the default
            `ParallelBUG` are for matrices only. One that asks for more than one point keeps each
            layer's inputs and output gradients from backward to step (and unfolds the patches of a
            convolution there); one that runs the model again needs `step(closure)` and the rule
            `SGD`.
        control: how long steps are: by `lr`, or without one by `rankwise.RateFree()`.
        weight_decay: decoupled, on the core of low-rank layers (its norm is that of the weight) and
            on dense parameters, >= 0.
        max_step: no step moves a low-rank layer by more than this fraction of the Frobenius norm
            of its weight (times `turns`), > 0, by default 0.002; see `rankwise.optim.trust`.
            `float("inf")`: no limit. For steps by `lr` only.
        turns: layers take turns: each moves in one step of so many, as many times as far, by
            momentum of the gradients of all of them; >= 1. A step has as many times less linear
            algebra to do. All layers move in the first step and where ranks may change. By default
            what `rule` has in `turns`, for `Adam` 2, and 1 with other integrators than ParallelBUG.
        inputs_every: to save memory, keep the input of each `LowRankLinear` for its backward pass
            in one step of so many only, the layers in turn; >= 1. In its other steps the gradient
            of `V` is taken to be its mean so far. For `Adam` and `Spectral`. An adapter's inputs
            are a good part of what a model keeps for backward, and nothing else has need of them.
        conditioning: what keeps the singular values of each low-rank weight together, for
            robustness: one of `rankwise.robust`, e.g. `SpreadPenalty(beta=0.1)`. None: nothing. It
            acts after the step: `max_step` says nothing about what a limit takes away.
        guard: what is examined while it trains, and what is done where something is wrong. None:
            `rankwise.check.Guard()`, which repairs bases, and ends in an error where training
            cannot go on.
        groups: dicts with `params` (parameters, modules or their names) and options of their own
            (`lr`, `weight_decay`, `max_step`); what they leave out is in the last group.

    Attributes:
        layers: the low-rank layers that it trains, with their names.
        steps: number of steps taken.
        skipped: number of steps skipped for a non-finite gradient, or one whose squares overflow.
        incidents: what the guard has met, see `rankwise.check.Incidents`.
        trains_factors: True; `rankwise.nn.guard` lets no optimizer without it step factors.
    """

    trains_factors: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        lr: float | None = None,
        *,
        rule: UpdateRule | None = None,
        rank_rule: RankRule | None = None,
        integrator: Integrator | None = None,
        control: StepControl | None = None,
        weight_decay: float = 0.0,
        max_step: float | None = None,
        turns: int | None = None,
        inputs_every: int = 1,
        conditioning: Conditioning | None = None,
        guard: Guard | None = None,
        groups: Iterable[dict[str, Any]] = (),
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"`Optimizer(model)` takes the model, not its parameters; got "
                f"{type(model).__name__}. "
                "It finds what trains by itself; use `groups=` for learning rates of their own."
            )
        check_kind("rule", rule, UpdateRule, "Adam()")
        check_kind("rank_rule", rank_rule, RankRule, "Tolerance(rtol=0.3)")
        check_kind("integrator", integrator, Integrator, "integrators.ParallelBUG()")
        check_kind("control", control, StepControl, "RateFree()")
        check_kind("conditioning", conditioning, Conditioning, "robust.NormLimit(1.0)")
        check_kind("guard", guard, Guard, "check.Guard(rewinds=3)")
        self.layers = trainable_layers(model)
        check_layouts(model, dict(self.layers))
        self.rule = Adam() if rule is None else rule
        self.rank_rule = FixedRank() if rank_rule is None else rank_rule
        self.integrator = ParallelBUG() if integrator is None else integrator
        self.control = Trust() if control is None else control
        self.conditioning = conditioning
        default = self.rule.turns if isinstance(self.integrator, ParallelBUG) else 1
        self.turns = default if turns is None else turns
        groups = list(groups)
        check_turns(self.turns, self.integrator)
        self.inputs_every = inputs_every
        check_inputs_every(inputs_every, self.rule, self.integrator)
        check_combination(self.rule, self.integrator)
        check_control(self.control, {"max_step": max_step, "weight_decay": weight_decay}, groups)
        check_comparable(self.rank_rule, self.layers)
        check_conditioning(conditioning, self.rank_rule, self.layers)
        check_layers(self.rule, self.integrator, self.layers)
        self.guard = Guard() if guard is None else guard
        self.steps = 0
        self.skipped = 0
        self.incidents = Incidents()
        defaults = {
            "lr": self.control.default_lr if lr is None else lr,
            "weight_decay": weight_decay,
            "max_step": DEFAULT_MAX_STEP if max_step is None else max_step,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
        }
        super().__init__(param_groups(model, self.layers, groups), defaults)
        for group in self.param_groups:
            check_options(group)
        self._model = model
        self._attach()

    def _attach(self) -> None:
        """Make the layers this optimizer's own."""
        self._versions: dict[str, Version] = {}
        self._begun = False
        several = self.integrator.same_matrix and self.integrator.points > 1
        self._batches = Batches(self.layers if several else [])
        claim(self, self.layers)
        self._watch = Watch(self.guard, self.layers, Statistics(self._model))
        weakref.finalize(self, wake, [weakref.ref(layer) for _, layer in self.layers])
        self._let_rest()

    def _let_rest(self) -> None:
        step = self.steps + 1
        let_rest(self.layers, self.state, self.integrator.at(step), step, self.inputs_every)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: vars(self)[name] for name in COPIED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, which trains the copy of the model that comes with it: copy both at once."""
        super().__setstate__(state)
        # Torch's `load_state_dict` passes here too, with nothing but tensors and groups.
        if "layers" in state:
            self._attach()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; the loss of `closure`, if given.

        With an integrator that runs the model again, `closure` is called at every point; it returns
        the loss after `backward()`, and gradients are cleared before each call.
        """
        integrator = self.integrator.at(self.steps + 1)
        replicas = replicas_of(self.layers)
        check_whole_gradient(replicas, integrator)
        if not self._begun:
            check_parameters(self._model, self.layers, self.param_groups)
            warn_if_alone(self.layers)
            if replicas is not None:
                replicas.check_steps(self.steps)
            self._watch.begins(self._held, self.steps)
            self._begun = True
        if not integrator.same_matrix:
            check_closure(self.integrator, closure, self._gradients())
            check_deterministic(self._model)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not any(True for _ in self._gradients()):
            return loss
        if replicas is not None:
            replicas.check_sent()
        if not all_usable(list(self._gradients())):
            return self._skip(loss)
        check_untouched(self, self.layers, self._versions)
        check_ranks_kept(self.layers, self.state)
        for group in self.param_groups:
            group["peak_lr"] = max(group.get("peak_lr", 0.0), float(group["lr"]))
        present = self._present(integrator)
        clock = Clock(self.steps + 1, _decay(m.group for m in present))
        if present:
            self.control.prepare(
                [m.layer for m in present],
                [m.gradient for m in present],
                [m.state for m in present],
                step=clock.step,
            )
        self._watch.starts()
        moving, resting = in_turn(present, self.turns, clock, self.rank_rule)
        try:
            arrivals = self._arrivals(moving, integrator, closure)
        except NoSVD as error:
            # The others may have found one, and wait in what all have to do together.
            if replicas is not None and replicas.processes > 1:
                raise
            self.skipped += 1
            self._met(self._watch.back(self._held, self.steps, str(error)))
            return self._left(loss)
        if arrivals is None:
            return self._skip(loss)
        self.steps = clock.step
        observe(resting, self.rule)
        count_inputs(present)
        self._retract(moving, arrivals, clock, replicas)
        for group, dense in self._dense():
            self.control.dense_step_(dense, self.state, group)
        self._met(self._watch.taken(self._held, self.steps))
        record(self.layers, self._versions)
        self._let_rest()
        self._clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, and what an integrator keeps of the passes that they are from."""
        super().zero_grad(set_to_none)
        self._batches.clear()

    def _skip(self, loss: Any) -> Any:
        self.skipped += 1
        self._met(self._watch.skipped(self._held, self.steps))
        return self._left(loss)

    def _left(self, loss: Any) -> Any:
        """After a step that was not taken."""
        record(self.layers, self._versions)
        self._clear()
        return loss

    def _clear(self) -> None:
        """Forget what this step has used up."""
        self._batches.clear()
        if not self.integrator.same_matrix:
            # They are those of the last point; the closure computes the next ones.
            self.zero_grad()

    def _gradients(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    yield p.grad

    def _met(self, new: Incidents) -> None:
        self.incidents = self.incidents.plus(new)

    def _dense(self) -> list[tuple[dict[str, Any], list[Tensor]]]:
        """Each group, and what of it is no factor."""
        factors = {id(p) for _, layer in self.layers for p in layer.factor_parameters()}
        return [
            (group, [p for p in group["params"] if id(p) not in factors])
            for group in self.param_groups
        ]

    def _held(self) -> Held:
        names = {id(p): name for name, p in self._model.named_parameters()}
        dense = [p for _, own in self._dense() for p in own]
        named = {names.get(id(p), f"parameter {i}"): p for i, p in enumerate(dense)}
        return Held(named, self.state, self.rank_rule, self.incidents.rewound)

    def _present(self, integrator: Integrator) -> list[Moving]:
        """All layers that have a gradient."""
        group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        return [
            Moving(
                place, name, layer, point := layer.factors(),
                self._gradient_of(layer, point, state := self.state[U := layer.U]),
                state, group_of[id(U)], integrator, state.get(WAITED, 0) + 1,
            )
            for place, (name, layer) in enumerate(self.layers)
            if has_gradient(name, layer)
        ]  # fmt: skip

    def _gradient_of(self, layer: LowRankModule, point: Any, state: State) -> TangentVector:
        gradient, keep = layer.tangent_gradient(), self.rule.mean_decay
        if keep is None or layer.resting != INPUT:
            return gradient
        return with_mean_outside(point, gradient, state, keep=keep)

    def _arrivals(
        self, moving: list[Moving], integrator: Integrator, closure: Callable[[], Any] | None
    ) -> list[Arrival] | None:
        """The ends of all layers' steps, not yet cut; None where a gradient is not finite."""
        if integrator.same_matrix:
            return arrivals_of(moving, self.rule, self.control, self._batches)
        assert closure is not None

        def evaluate() -> bool:
            self.zero_grad()
            with torch.enable_grad():
                closure()
            return all_usable(list(self._gradients()))

        layers, states = [m.layer for m in moving], [m.state for m in moving]
        groups = [m.group for m in moving]
        ends = advance_together(layers, self.control, integrator, states, groups, evaluate)
        return None if ends is None else list(map(AloneArrival, moving, ends))

    def _retract(
        self, moving: list[Moving], arrivals: list[Arrival], clock: Clock, replicas: Replicas | None
    ) -> None:
        """Cut every layer to the ranks that the rank rule gives it, and carry momentum along."""
        found = {i: modes for arrival in arrivals for i, modes in arrival.candidates().items()}
        candidates = [candidate for m in moving for candidate in found[m.place]]
        chosen = iter(ranks_by(self.rank_rule, clock, candidates, replicas))
        cuts = {
            m.place: Cut([next(chosen) for _ in found[m.place]], self._shaping(m)) for m in moving
        }
        for arrival in arrivals:
            arrival.land(self.rule, cuts)
        align(self.rank_rule, clock, (self.state[layer.U] for _, layer in self.layers), replicas)

    def _shaping(self, m: Moving) -> Shaping:
        """What becomes of the layer's singular values."""
        if self.conditioning is None:
            return whole
        rate = m.waited * self.control.rate(m.state, m.group, relative=self.rule.relative)
        return shaping(self.conditioning, m.layer.scale, rate)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """`sqrt(sum ||P(W) G||^2 + sum ||dense gradients||^2)`, zero at a stationary point.

        Without what the last pass has left out, see `inputs_every` and `integrators.BasisEvery`.
        With sharded parameters, a sum over all processes: each of them has to ask.
        """
        present = (layer for name, layer in self.layers if has_gradient(name, layer))
        dense = [p.grad for _, own in self._dense() for p in own if p.grad is not None]
        return gradient_norm([layer.tangent_gradient() for layer in present], dense)

    @torch.no_grad()
    def clip_gradient_(self, max_norm: float) -> Tensor:
        """Scale all gradients so that `gradient_norm()` is at most `max_norm`; the norm before."""
        check_number("max_norm", max_norm)
        if not max_norm > 0:
            raise ValueError(f"`max_norm` must be positive, got {max_norm}")
        norm = self.gradient_norm()
        scale_to_(list(self._gradients()), norm, max_norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Torch's state dict with the counts of steps and the rule added under `"rankwise"`."""
        own = {
            "steps": self.steps,
            "skipped": self.skipped,
            "rule": type(self.rule).__name__,
            "integrator": type(self.integrator).__name__,
            "control": type(self.control).__name__,
            "incidents": list(self.incidents),
        }
        return {**super().state_dict(), "rankwise": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; load the model first, for its ranks must be those saved."""
        own = saved_parts(state_dict)
        check_parts(own, rule=self.rule, integrator=self.integrator, control=self.control)
        for group in state_dict["param_groups"]:
            check_options({**self.defaults, **group})
        super().load_state_dict(state_dict)
        check_saved_ranks(self.layers, self.state)
        check_remembered(self.layers, self.state, self.rule, self.control)
        take_over(self.state)
        shard_(self.state)
        self.steps, self.skipped = own["steps"], own["skipped"]
        known = own.get("incidents", ())[: len(Incidents._fields)]
        self.incidents = Incidents(*known)
        self._versions.clear()
        self._begun = False
        self._watch.loaded()
        if all(owner_of(layer) is self for _, layer in self.layers):
            self._let_rest()


def _decay(groups: Iterable[dict[str, Any]]) -> float:
    return max((g["lr"] / g["peak_lr"] for g in groups if g["peak_lr"] > 0), default=1.0)
