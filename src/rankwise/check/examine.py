"""A live training examined: who trains which factor, what gets a gradient, is the base frozen?"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.check.base import base_finding, compared, fingerprints
from rankwise.check.curve import incidents, skipped_share
from rankwise.check.finding import Finding, Findings, fault, fine, some, warning
from rankwise.check.weights import Weight, weights_findings
from rankwise.nn.low_rank import LowRankModule, low_rank_layers
from rankwise.numerics.fingerprint import Fingerprint
from rankwise.optim.guard import met
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.ownership import owner_of, unwrapped
from rankwise.optim.rest import awake


def examine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Any], Tensor] | None = None,
    batch: Any = None,
    *,
    base: Mapping[str, Fingerprint | None] | None = None,
) -> Findings:
    """What stands in the way of a training, each with its mend; `print` it.

    The model and the optimizer are left as they are, gradients, running statistics and random
    numbers too. For use when a training runs but nothing improves, or before it starts. (With an
    integrator of several points, which keeps what it sees, call `optimizer.zero_grad()` after it.)

    Args:
        model: that trains, on its device.
        optimizer: that trains it; wrappers with an attribute `optimizer` are looked through.
        loss_of: loss of one batch, a 0-dim tensor. With it, one forward and backward pass tells
            which layers get a gradient.
        batch: what `loss_of` takes.
        base: what `rankwise.check.fingerprints(model)` gave right after `adapt_`; then it is
            checked that the frozen weights are still the same.
    """
    layers = low_rank_layers(model)
    if not layers:
        return Findings([_no_layers()])
    optimizer = unwrapped(optimizer)
    found = [_ownership(model, layers, optimizer), *_rates(optimizer), _frozen(layers)]
    if loss_of is not None:
        found.append(_attached(model, layers, loss_of, batch))
    marks = fingerprints(model)
    if base is not None:
        found.append(base_finding(compared(base, marks)))
    weights = {name: _weight(layer, marks.get(name)) for name, layer in layers.items()}
    steps = optimizer.steps if isinstance(optimizer, Optimizer) else 0
    found += weights_findings(weights, trained=steps > 0)
    if isinstance(optimizer, Optimizer):
        found.append(skipped_share(optimizer.skipped, optimizer.steps + optimizer.skipped))
        found.append(incidents(met(optimizer.incidents)))
    return Findings(found)


def _weight(layer: LowRankModule, mark: Fingerprint | None) -> Weight:
    norm = None
    if mark is not None and layer.frozen is not None:
        norm = mark.rms * layer.frozen.numel() ** 0.5
    return Weight(layer.factors(), layer.scale, layer.base is not None, norm)


def _no_layers() -> Finding:
    return fault(
        "owned parameters",
        "the model has no low-rank layer",
        "call `rankwise.adapt_(model)` or `rankwise.factorize_(model)`, then make the optimizer",
    )


def _ownership(
    model: nn.Module, layers: Mapping[str, LowRankModule], optimizer: torch.optim.Optimizer
) -> Finding:
    name = "owned parameters"
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    frozen, strange, missing = [], [], []
    for layer_name, layer in layers.items():
        factors = layer.factor_parameters()
        if not all(p.requires_grad for p in factors):
            frozen.append(layer_name)
        elif not all(id(p) in owned for p in factors):
            missing.append(layer_name)
        elif owner_of(layer) is not optimizer:
            strange.append(layer_name)
    if strange and not isinstance(optimizer, Optimizer):
        return fault(
            name,
            f"{type(optimizer).__name__} has the factors of {some(strange)}",
            "make a `rankwise.Optimizer(model)`: the gradient slots of factors hold the tangent "
            "gradient, on which no other optimizer descends",
        )
    if strange:
        return fault(
            name,
            f"a newer optimizer has the factors of {some(strange)}",
            "make one optimizer for the model, and use that one",
        )
    known = {id(p) for layer in layers.values() for p in layer.factor_parameters()}
    missing += [
        n for n, p in model.named_parameters()
        if p.requires_grad and id(p) not in owned and id(p) not in known
    ]  # fmt: skip
    if missing:
        return fault(
            name,
            f"no optimizer given here has {some(missing)}",
            "make the optimizer after the last change of the model: after `adapt_`, `load`, "
            "`requires_grad_`, and after moving it to its device",
        )
    if frozen:
        return warning(
            name,
            f"the factors of {some(frozen)} are frozen",
            "`requires_grad_(True)` on all factors of the layer, before the optimizer is made",
        )
    return fine(name, f"{len(layers)} low-rank layers")


def _rates(optimizer: torch.optim.Optimizer) -> list[Finding]:
    name = "learning rate"
    rates = [float(g["lr"]) for g in optimizer.param_groups if g["params"]]
    highest = [max(float(g["lr"]), g.get("peak_lr", 0.0)) for g in optimizer.param_groups]
    zero = [i for i, rate in enumerate(highest) if rate == 0]
    if not zero:
        return [fine(name, ", ".join(f"{rate:.1e}" for rate in rates))]
    taken = isinstance(optimizer, Optimizer) and optimizer.steps > 0
    seen = f"zero in group {', '.join(map(str, zero))} of {len(highest)}"
    mend = "give `lr` (3e-3 is the default of rankwise.Optimizer); look at what the scheduler does"
    if taken:
        return [fault(name, f"{seen}, in every step so far", mend)]
    return [warning(name, f"{seen}, before the first step", f"{mend}; a warm-up may start so")]


def _frozen(layers: Mapping[str, LowRankModule]) -> Finding:
    name = "frozen base"
    merged = [n for n, layer in layers.items() if layer.merged]
    if merged:
        return fault(
            name,
            f"the adapters of {some(merged)} are merged, so they get no gradient",
            "call `rankwise.unmerge_(model)` before training goes on",
        )
    moving = [
        n for n, layer in layers.items()
        if layer.base is not None and any(p.requires_grad for p in layer.base.parameters())
    ]  # fmt: skip
    if moving:
        return fault(
            name,
            f"the base of {some(moving)} trains",
            "freeze it: `layer.base.requires_grad_(False)`; `adapt_` does so, something has undone "
            "it. Then load the base again, if steps were taken",
        )
    count = sum(layer.base is not None for layer in layers.values())
    return fine(name, f"{count} frozen weights under adapters")


def _attached(
    model: nn.Module,
    layers: Mapping[str, LowRankModule],
    loss_of: Callable[[Any], Tensor],
    batch: Any,
) -> Finding:
    name = "attached layers"
    with _traceless(model), awake(layers.values()), torch.enable_grad():
        loss = loss_of(batch)
        if not isinstance(loss, Tensor):
            raise TypeError(f"`loss_of` must return a 0-dim tensor, got {type(loss).__name__}")
        if not loss.requires_grad:
            return fault(
                name,
                "the loss does not depend on anything that trains",
                "look for `no_grad`, `inference_mode`, `.detach()` or `.item()` in the forward "
                "pass; check that factors require gradients",
            )
        loss.backward()
        training = {n: x for n, x in layers.items() if x.U.requires_grad}
        none = [n for n, layer in training.items() if layer.U.grad is None]
        zero = [n for n, layer in training.items() if n not in none and not _any(layer)]
        bad = [n for n, layer in training.items() if n not in none and not _finite(layer)]
    if none:
        return fault(
            name,
            f"{len(none)} of {len(training)} layers get no gradient: {some(none)}",
            "the forward pass does not call them on this batch: a parent reads their weight, they "
            "were replaced, or no row is routed to them. Leave them out with `adapt_(exclude=...)`",
        )
    if bad:
        return fault(
            name,
            f"{len(bad)} of {len(training)} layers get a gradient that is not finite: {some(bad)}",
            "look at the loss of this batch, for logarithms or divisions of zero, and at its type",
        )
    if zero:
        return warning(
            name,
            f"{len(zero)} of {len(training)} layers get a gradient of exactly zero: {some(zero)}",
            "what follows them does not pass it on: dead units, a mask, a factor of zero",
        )
    return fine(name, f"all {len(training)} layers get a gradient")


def _any(layer: LowRankModule) -> bool:
    return any(bool(g.any()) for g in layer.gradient() if g is not None)


def _finite(layer: LowRankModule) -> bool:
    return all(bool(g.isfinite().all()) for g in layer.gradient() if g is not None)


@contextmanager
def _traceless(model: nn.Module) -> Iterator[None]:
    """Within, gradients are none; afterwards these, buffers and random numbers are as before."""
    kept = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        for p, _ in kept:
            p.grad = None
        with torch.random.fork_rng(devices=sorted(i for i in devices if i is not None)):
            yield
    finally:
        for p, grad in kept:
            p.grad = grad
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
