"""What the factors of a model or of a file say: are they sound, and have they learned anything?"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from rankwise.check.finding import Finding, Findings, fault, fine, some, warning
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.tucker import Tucker

MAX_DEFECT = 1e-3
"""`max |Q^T Q - I|` beyond which bases are none; rounding stays far below."""
LEAST_MOVE = 1e-4
"""A change smaller than this part of the weight is none that a loss would tell."""


class Weight(NamedTuple):
    """One low-rank weight, be it from a model or from a file."""

    point: Factors | Tucker
    scale: float
    has_base: bool
    base_norm: float | None = None
    """`||W0||_F`, to a tenth; None where it is not known."""


def weights_findings(weights: Mapping[str, Weight], *, trained: bool = True) -> Findings:
    """Everything that factors can tell by themselves.

    Args:
        weights: by the name of their layer.
        trained: whether there have been steps, so that adapters must have left zero.
    """
    found = [finite_factors(weights)]
    sound = {name: w for name, w in weights.items() if not _bad_entries(w)}
    if sound:
        found.append(orthonormal_bases(sound))
    adapters = {name: w for name, w in sound.items() if w.has_base}
    if adapters and trained:
        found.append(trained_layers(adapters))
        found.extend(movement(adapters))
    return Findings(found)


def finite_factors(weights: Mapping[str, Weight]) -> Finding:
    name = "finite factors"
    bad = {n: _bad_entries(w) for n, w in weights.items() if _bad_entries(w)}
    if bad:
        count = sum(bad.values())
        return fault(
            name,
            f"{count} NaN or infinite numbers in {len(bad)} of {len(weights)} layers: {some(bad)}",
            "go back to a checkpoint from before; rankwise.Optimizer skips steps with a non-finite "
            "gradient, so look for what else wrote into the factors",
        )
    return fine(name, f"{len(weights)} layers")


def orthonormal_bases(weights: Mapping[str, Weight]) -> Finding:
    name = "orthonormal bases"
    defects = {n: _defect(w) for n, w in weights.items()}
    bad = sorted((n for n, d in defects.items() if d > MAX_DEFECT), key=lambda n: -defects[n])
    if bad:
        return fault(
            name,
            f"max |Q^T Q - I| = {defects[bad[0]]:.1e} in {some(bad)}, of {len(weights)} layers",
            "let only rankwise.Optimizer train the factors: no other optimizer, weight average or "
            "cast to 16 bits; start again from the last good checkpoint",
        )
    return fine(name, f"max |Q^T Q - I| = {max(defects.values()):.1e}")


def trained_layers(adapters: Mapping[str, Weight]) -> Finding:
    name = "trained layers"
    zero = [n for n, w in adapters.items() if not bool(w.point[1].any())]
    if len(zero) == len(adapters):
        return fault(
            name,
            f"all {len(zero)} adapters are still zero: the model computes what its base does",
            "check that `optimizer.step()` runs, that the learning rate is not zero, and with "
            "`rankwise.check.examine(model, optimizer, loss_of, batch)` that gradients arrive",
        )
    if zero:
        return warning(
            name,
            f"{len(zero)} of {len(adapters)} adapters are still zero: {some(zero)}",
            "they got no gradient: the forward pass does not call them, or reads their weight past "
            "them. Leave them out with `adapt_(exclude=...)`",
        )
    return fine(name, f"all {len(adapters)} adapters differ from zero")


def movement(adapters: Mapping[str, Weight]) -> list[Finding]:
    """How far adapters have moved the weights; nothing where the size of these is not known."""
    name = "movement"
    moved = {
        n: abs(w.scale) * float(w.point.norm()) / w.base_norm
        for n, w in adapters.items()
        if w.base_norm and bool(w.point[1].any())
    }
    if not moved:
        return []
    most = max(moved, key=lambda n: moved[n])
    seen = f"adapters are {min(moved.values()):.1e} to {moved[most]:.1e} of their weights"
    if moved[most] < LEAST_MOVE:
        return [
            warning(
                name,
                seen,
                "raise the learning rate (3e-3 is the default of rankwise.Optimizer, as a relative "
                "change a step), train longer, or raise `max_step`",
            )
        ]
    return [fine(name, seen)]


def _bad_entries(weight: Weight) -> int:
    return sum(int((~t.isfinite()).sum()) for t in weight.point)


def _defect(weight: Weight) -> float:
    bases = (weight.point.U, weight.point.V)
    return max(float(orthonormality_defect(Q.to(torch.float64))) for Q in bases)
