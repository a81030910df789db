"""What the record of a run says: one mapping a step, as in `history.jsonl`.

Only `loss` is expected of a line; what a loop has not written (`lr`, `gradient_norm`, `mean_rank`,
`skipped`, `incidents`) is not judged.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.check.finding import Finding, Findings, fault, fine, warning
from rankwise.check.series import FEWEST, trend
from rankwise.check.weights import Weight

Line = Mapping[str, Any]

LEAST_RELATIVE, LEAST_PLAIN = 1e-5, 1e-8
"""Highest rates of a run below which nothing moves: of a relative change, and of any other."""
FEW_SKIPPED, MANY_SKIPPED = 0.01, 0.2
GROWN = 3.0
"""Factor by which a gradient may grow in a run: a new head often makes it grow somewhat."""


class RuleText(NamedTuple):
    """A rank rule by its `repr`, as metrics hold it."""

    kind: str
    options: Mapping[str, Any]

    @property
    def adapts(self) -> bool:
        return self.kind != "FixedRank"


def rule_text(text: str) -> RuleText:
    """`Budget(every=25, parameters=100)` taken apart; no options where it cannot be."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call):
            named = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
            return RuleText(ast.unparse(call.func), named)
    except (SyntaxError, ValueError):
        pass
    return RuleText(text, {})


def curve_findings(
    lines: Sequence[Line],
    *,
    rule: RuleText | None = None,
    relative: bool = False,
    skipped: int | None = None,
    fits_already: bool = False,
) -> Findings:
    """Everything that the lines tell.

    Args:
        lines: of all steps, in order.
        rule: of the ranks, if it is known.
        relative: whether `lr` is a relative change of weights, as for `Adam` and `Spectral`.
        skipped: number of steps without effect; None: counted by the lines.
        fits_already: whether the model was trained before, so that a loss that stays is no wonder.
    """
    if not lines:
        return Findings()
    found = [finite_loss(lines), falling_loss(lines, fits_already=fits_already)]
    found += [*learning_rate(lines, relative=relative), *stationarity(lines)]
    found.append(skipped_steps(lines, skipped))
    met = [line["incidents"] for line in lines if "incidents" in line]
    if met:
        found.append(incidents(met[-1]))
    if rule is not None and rule.adapts:
        found += rank_changes(lines, rule)
    return Findings(found)


def finite_loss(lines: Sequence[Line]) -> Finding:
    name = "finite loss"
    bad = [i for i, loss in enumerate(_numbers(lines, "loss"), 1) if not math.isfinite(loss)]
    if bad:
        return fault(
            name,
            f"NaN or infinite in {len(bad)} of {len(lines)} steps, first in step {bad[0]}",
            "lower the learning rate or clip with `optimizer.clip_gradient_(1.0)`; look at the "
            "batch of that step; train in float32 or bfloat16, not float16",
        )
    return fine(name, f"in all {len(lines)} steps")


def falling_loss(lines: Sequence[Line], *, fits_already: bool = False) -> Finding:
    name = "falling loss"
    # A loss that is not finite is another finding.
    losses = [loss for loss in _numbers(lines, "loss") if math.isfinite(loss)]
    course = trend(losses)
    if course is None:
        return fine(name, f"{len(losses)} steps tell nothing, {FEWEST} would")
    if course.fell:
        return fine(name, str(course))
    if course.rose:
        return fault(
            name,
            f"it rose: {course}",
            "lower the learning rate, or warm it up; check the labels and the sign of the loss",
        )
    seen = f"no change beyond its noise: {course}, with an error of {course.error:.2g}"
    if fits_already:
        return fine(name, f"{seen}; the model was trained before")
    return warning(
        name,
        seen,
        "train longer or with a higher learning rate; examine the live model with "
        "`rankwise.check.examine`. A model that fits its data already has nothing to gain",
    )


def learning_rate(lines: Sequence[Line], *, relative: bool) -> list[Finding]:
    name = "learning rate"
    rates = _numbers(lines, "lr")
    if not rates:
        return []
    highest, least = max(rates), LEAST_RELATIVE if relative else LEAST_PLAIN
    mend = "give `lr` (3e-3 is the default of rankwise.Optimizer); look at what the scheduler does"
    if highest == 0:
        return [fault(name, f"zero in all {len(rates)} steps", mend)]
    if highest < least:
        return [warning(name, f"{highest:.1e} at its highest: nothing moves", mend)]
    return [fine(name, f"{highest:.1e} at its highest")]


def stationarity(lines: Sequence[Line]) -> list[Finding]:
    name = "stationarity"
    norms = _numbers(lines, "gradient_norm")
    if norms and not any(norms):
        return [
            fault(
                name,
                f"the gradient is zero in all {len(norms)} steps",
                "the loss does not depend on what trains: look for `.detach()`, `no_grad` or "
                "adapters that the forward pass does not call, with `rankwise.check.examine`",
            )
        ]
    course = trend([n for n in norms if math.isfinite(n)])
    if course is None:
        return []
    if course.rose and course.end > GROWN * course.start:
        return [
            warning(
                name,
                f"the norm of the tangent gradient grew: {course}",
                "steps are too long for the loss: lower the learning rate or `max_step`, and let "
                "the rate decay",
            )
        ]
    return [fine(name, f"norm of the tangent gradient {course}")]


def skipped_steps(lines: Sequence[Line], skipped: int | None = None) -> Finding:
    name = "skipped steps"
    if skipped is None:
        told = [line["skipped"] for line in lines if "skipped" in line]
        bad = [n for n in _numbers(lines, "gradient_norm") if not math.isfinite(n)]
        skipped = max(told) if told else len(bad)
    return skipped_share(skipped, len(lines), name)


def skipped_share(skipped: int, steps: int, name: str = "skipped steps") -> Finding:
    """Of `steps` in all, taken and skipped ones."""
    share = skipped / max(1, steps)
    seen = f"{skipped} of {steps} ({share:.1%}) had a non-finite gradient"
    mend = (
        "lower the learning rate or clip with `optimizer.clip_gradient_(1.0)`; with float16 use a "
        "loss scaler, or bfloat16; look for a division or logarithm of zero in the loss"
    )
    if share > MANY_SKIPPED:
        return fault(name, seen, mend)
    return warning(name, seen, mend) if share > FEW_SKIPPED else fine(name, seen)


def incidents(met: Mapping[str, int]) -> Finding:
    """What the optimizer's guard has met, by name."""
    name = "incidents"
    seen = ", ".join(f"{count} {what}" for what, count in met.items() if count) or "none"
    if met.get("rewound"):
        return warning(
            name,
            f"{seen}: training went wrong and back to an earlier state",
            "look at the loss before these steps; lower the learning rate or clip the gradient",
        )
    if met.get("repaired"):
        return warning(
            name,
            f"{seen}: bases had lost their orthonormality",
            "let only rankwise.Optimizer write into factors, and keep them in float32",
        )
    return fine(name, seen)


def rank_changes(lines: Sequence[Line], rule: RuleText) -> list[Finding]:
    name = "rank changes"
    means, told = _numbers(lines, "mean_rank"), [x["ranks"] for x in lines if "ranks" in x]
    if not means and not told:
        return []
    if len(set(means)) > 1 or len(set(map(str, told))) > 1:
        course = f"mean rank {means[0]:.1f} to {means[-1]:.1f}" if means else "ranks moved"
        return [fine(name, f"{course} by {rule.kind}")]
    steps, every = len(lines), rule.options.get("every", 1)
    seen = f"ranks are the same in all {steps} steps, though {rule.kind} adapts them"
    if steps < every:
        reason = f"the run is shorter than a cycle of the rule, {every} steps"
        return [
            warning(name, f"{seen}: {reason}", f"train longer, or `every={max(2, steps // 4)}`")
        ]
    if rule.kind == "Budget":
        mend = (
            "the start holds what the budget allows: give fewer `parameters`, start at a higher "
            "rank, or take `FixedRank()`"
        )
    else:
        mend = (
            "nothing falls below the tolerance and nothing new rises above it: raise `rtol`, let "
            "layers grow (`grow`, `max_rank`), or take `FixedRank()`"
        )
    return [warning(name, seen, mend)]


def rank_bounds(weights: Mapping[str, Weight], rule: RuleText | None) -> list[Finding]:
    """Whether the ranks of the end are the rule's own, or those of a bound that held them."""
    name = "rank bounds"
    modes = [mode for w in weights.values() for mode in w.point.modes()]
    if rule is None or not rule.adapts or len(weights) < 2:
        return []
    ranks = [mode.rank for mode in modes]
    most, least = rule.options.get("max_rank"), rule.options.get("min_rank", 1)
    held = round(sum(mode.rank * mode.cost for mode in modes))
    budget = rule.options.get("parameters")
    seen = f"all {len(weights)} layers have"
    if most is not None and all(r >= most for r in ranks):
        return [warning(name, f"{seen} rank {most}, `max_rank`", "raise `max_rank`")]
    if all(mode.rank == min(mode.shape) for mode in modes):
        return [
            warning(
                name,
                f"{seen} full rank, min(out, in): nothing is saved",
                "raise `rtol`, give a smaller budget or a `max_rank`",
            )
        ]
    if all(r <= least for r in ranks):
        return [
            warning(
                name,
                f"{seen} the least rank, {least}",
                "lower `rtol` or give a larger budget; less weight decay",
            )
        ]
    if budget is not None and held > budget:
        return [
            warning(
                name,
                f"{held:,} parameters in the end, above the budget of {budget:,}",
                "the run ended before ranks had come down: train longer, shorten `every`, or "
                "lower `keep`",
            )
        ]
    return [fine(name, f"ranks {min(ranks)} to {max(ranks)}, not held by a bound")]


def _numbers(lines: Sequence[Line], key: str) -> list[float]:
    """The values of `key` where there are; null, which JSON has for infinity, is infinite."""
    return [math.inf if line[key] is None else float(line[key]) for line in lines if key in line]
