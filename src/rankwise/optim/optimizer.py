"""The optimizer: factors on the manifold of low-rank matrices, everything else by AdamW."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.nn.linear import LowRankLinear
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Spectrum, core_of, cut, decompose, embed, frame_of
from rankwise.numerics.tangent import Tangent, squared_norm
from rankwise.optim.adam import Adam
from rankwise.optim.dense import adamw_
from rankwise.optim.layers import param_groups, trainable_layers
from rankwise.optim.ownership import Version, check_untouched, claim, record
from rankwise.optim.rank_rule import Candidates, Clock, FixedRank, RankRule
from rankwise.optim.trust import step_length
from rankwise.optim.update_rule import UpdateRule

DEFAULT_LR = 3e-3


class Optimizer(torch.optim.Optimizer):
    """Trains a model with factored layers; ranks adapt inside `step()`, nothing else to call.

    Each factored layer takes the step `W - h * direction` in `span[U, K] x span[V, L]` and is
    retracted to the rank that the rank rule allows; momentum is carried along. All other trainable
    parameters take an AdamW step. A step with a non-finite gradient is skipped and counted.

    Args:
        model: with layers from `rankwise.adapt_`; its trainable parameters are found by itself.
        lr: learning rate, >= 0; works with the schedulers of `torch.optim.lr_scheduler`. For `Adam`
            and `Spectral` it is the relative change of a weight in one step (for gradients without
            noise), the same number for small and large models; for `SGD` and `HeavyBall` a plain
            rate. Dense parameters take it as AdamW's.
        rule: update rule of the factored layers.
        rank_rule: how ranks adapt.
        weight_decay: decoupled, on `S` of factored layers (`||S|| = ||U S V^T||`) and on dense
            parameters, >= 0.
        max_step: no step moves a factored layer by more than this fraction of the Frobenius norm
            of its weight, > 0; see `rankwise.optim.trust`. `float("inf")`: no limit.
        groups: dicts with `params` (parameters, modules or their names) and options of their own
            (`lr`, `weight_decay`, `max_step`); what they leave out is in the last group.

    Attributes:
        layers: the factored layers that it trains, with their names.
        steps: number of steps taken.
        skipped: number of steps skipped for a non-finite gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = DEFAULT_LR,
        *,
        rule: UpdateRule | None = None,
        rank_rule: RankRule | None = None,
        weight_decay: float = 0.0,
        max_step: float = 0.002,
        groups: Iterable[dict[str, Any]] = (),
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"`Optimizer(model)` takes the model, not its parameters; got "
                f"{type(model).__name__}. "
                "It finds what trains by itself; use `groups=` for learning rates of their own."
            )
        _check_kind("rule", rule, UpdateRule)
        _check_kind("rank_rule", rank_rule, RankRule)
        self.layers = trainable_layers(model)
        self.rule = Adam() if rule is None else rule
        self.rank_rule = FixedRank() if rank_rule is None else rank_rule
        self.steps = 0
        self.skipped = 0
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "max_step": max_step,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
        }
        super().__init__(param_groups(model, self.layers, groups), defaults)
        for group in self.param_groups:
            _check_options(group)
        self._versions: dict[str, Version] = {}
        claim(self, self.layers)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; the loss of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return loss
        if not _all_finite(gradients):
            self.skipped += 1
            return loss
        check_untouched(self, self.layers, self._versions)
        self.steps += 1
        for group in self.param_groups:
            group["peak_lr"] = max(group.get("peak_lr", 0.0), float(group["lr"]))
        self._step_factors()
        record(self.layers, self._versions)
        factors = {id(p) for _, layer in self.layers for p in (layer.U, layer.S, layer.V)}
        for group in self.param_groups:
            adamw_([p for p in group["params"] if id(p) not in factors], self.state, group)
        return loss

    def _step_factors(self) -> None:
        group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        layers = [layer for name, layer in self.layers if has_gradient(name, layer)]
        groups = [group_of[id(layer.U)] for layer in layers]
        factors = [layer.factors() for layer in layers]
        spectra = list(map(self._advance, layers, factors, groups))
        candidates = [
            Candidates(s.sigma, f.rank, f.shape) for s, f in zip(spectra, factors, strict=True)
        ]
        ranks = self.rank_rule.ranks(Clock(self.steps, _decay(groups)), candidates)
        for layer, old, spectrum, rank in zip(layers, factors, spectra, ranks, strict=True):
            new = cut(spectrum, rank)
            self.rule.transport(old, new, self.state[layer.U])
            layer.set_factors_(new)

    def _advance(self, layer: LowRankLinear, f: Factors, group: dict[str, Any]) -> Spectrum:
        """The layer's step, not yet cut."""
        state = self.state[layer.U]
        D = self.rule.direction(f, tangent_gradient(layer), state)
        frame = frame_of(f, D)
        core = self.rule.core(core_of(frame, f.rank, D))
        h = step_length(layer, core, state, group, relative=self.rule.relative)
        kept = f.S * (1.0 - group["lr"] * group["weight_decay"])
        return decompose(frame, embed(kept, core) - h * core)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """`sqrt(sum ||P(W) G||^2 + sum ||dense gradients||^2)`, zero at a stationary point."""
        layers = [layer for name, layer in self.layers if has_gradient(name, layer)]
        squares = [squared_norm(tangent_gradient(layer)) for layer in layers]
        factors = {id(p) for _, layer in self.layers for p in (layer.U, layer.S, layer.V)}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and id(p) not in factors:
                    squares.append(p.grad.square().sum())
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())

    @torch.no_grad()
    def clip_gradient_(self, max_norm: float) -> Tensor:
        """Scale all gradients so that `gradient_norm()` is at most `max_norm`; the norm before."""
        if not max_norm > 0:
            raise ValueError(f"`max_norm` must be positive, got {max_norm}")
        norm = self.gradient_norm()
        factor = (max_norm / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(factor)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Torch's state dict with the counts of steps and the rule added under `"rankwise"`."""
        own = {"steps": self.steps, "skipped": self.skipped, "rule": type(self.rule).__name__}
        return {**super().state_dict(), "rankwise": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; load the model first, for its ranks must be those saved."""
        own = state_dict.get("rankwise")
        if own is None:
            raise ValueError(
                "`state_dict` is not from a rankwise.Optimizer: it has no 'rankwise' entry"
            )
        if own["rule"] != type(self.rule).__name__:
            raise ValueError(
                f"`state_dict` is from an optimizer with rule {own['rule']}, "
                f"this one has {type(self.rule).__name__}"
            )
        super().load_state_dict(state_dict)
        self.steps, self.skipped = own["steps"], own["skipped"]
        self._versions.clear()
        for name, layer in self.layers:
            momentum = self.state[layer.U].get("momentum") if layer.U in self.state else None
            if momentum is not None and momentum[0].shape != layer.U.shape:
                raise ValueError(
                    f"layer {name!r} has rank {layer.rank}, but the optimizer was saved with rank "
                    f"{momentum[0].shape[1]}. Load the model that was saved with it first."
                )


def tangent_gradient(layer: LowRankLinear) -> Tangent:
    """`P(W) G` from the gradient slots of the last backward pass."""
    dK, dL, dS = layer.gradient()
    assert dK is not None and dL is not None and dS is not None
    return Tangent(dK, dL, dS)


def has_gradient(name: str, layer: LowRankLinear) -> bool:
    """Whether the layer took part in the backward pass; ValueError if only a part of it did."""
    present = [g is not None for g in layer.gradient()]
    if any(present) and not all(present):
        raise ValueError(
            f"layer {name!r} has gradients for only a part of its factors; was one of U, S, V "
            "frozen or its `.grad` cleared after the optimizer was made?"
        )
    return all(present)


def _all_finite(gradients: list[Tensor]) -> bool:
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
    return bool(largest.isfinite())


def _decay(groups: Iterable[dict[str, Any]]) -> float:
    return max((g["lr"] / g["peak_lr"] for g in groups if g["peak_lr"] > 0), default=1.0)


def _check_kind(name: str, value: Any, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        hint = (
            f"an instance, `{value.__name__}()`"
            if isinstance(value, type)
            else f"a {kind.__name__}"
        )
        raise TypeError(f"`Optimizer({name}=...)` must be {hint}, got {value!r}")


def _check_options(group: dict[str, Any]) -> None:
    for name, least in (("lr", 0.0), ("weight_decay", 0.0)):
        if not group[name] >= least:
            raise ValueError(
                f"`Optimizer({name}=...)` must be at least {least:g}, got {group[name]}"
            )
    if not group["max_step"] > 0:
        raise ValueError(f"`Optimizer(max_step=...)` must be positive, got {group['max_step']}")
