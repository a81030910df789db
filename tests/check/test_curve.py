"""What the record of a run tells: every disease is found by its name, a healthy run has none."""

import math

import pytest
import torch

from rankwise.check.curve import RuleText, curve_findings, rank_bounds, rule_text
from rankwise.check.finding import Verdict
from rankwise.check.series import trend
from rankwise.check.weights import Weight
from rankwise.numerics.init import truncated_svd
from rankwise.optim.budget import Budget
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.tolerance import TailTolerance, Tolerance

STEPS = 60
TOLERANCE = rule_text(repr(Tolerance(rtol=0.2, every=10)))


def noise(seed: int, count: int = STEPS) -> list[float]:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).tolist()


def healthy(count: int = STEPS) -> list[dict]:
    """A loss that falls under noise, a gradient that falls with it, ranks that move."""
    return [
        {
            "step": i + 1,
            "loss": 1.0 / (1 + i / 20) + 0.05 * z,
            "lr": 1e-2,
            "mean_rank": 4.0 + i // 10,
            "gradient_norm": 0.3 / (1 + i / 20) * math.exp(0.2 * z),
        }
        for i, z in enumerate(noise(0, count))
    ]


def sick(lines: list[dict], **options) -> dict[str, Verdict]:
    return {f.name: f.verdict for f in curve_findings(lines, rule=TOLERANCE, **options).bad}


def changed(**series) -> list[dict]:
    """The healthy run with other values of these."""
    lines = healthy()
    for key, values in series.items():
        for line, value in zip(lines, values, strict=True):
            line[key] = value
    return lines


def test_a_healthy_run_has_no_finding_but_good_ones():
    found = curve_findings(healthy(), rule=TOLERANCE, relative=True)
    assert not found.bad
    assert [f.name for f in found] == [
        "finite loss", "falling loss", "learning rate", "stationarity", "skipped steps",
        "rank changes",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_of_noise_alone_does_not_fall(seed):
    lines = changed(loss=[1.0 + 0.1 * z for z in noise(seed)])
    assert set(sick(lines)) == {"falling loss"}


def test_a_loss_that_stays_is_a_warning_and_one_that_rises_a_fault():
    flat = changed(loss=[1.0 + 0.1 * z for z in noise(1)])
    assert sick(flat) == {"falling loss": Verdict.WARNING}
    assert sick(flat, fits_already=True) == {}
    rising = changed(loss=[1.0 + 0.05 * i for i in range(STEPS)])
    assert sick(rising) == {"falling loss": Verdict.FAULT}
    assert sick(rising, fits_already=True) == {"falling loss": Verdict.FAULT}


@pytest.mark.parametrize("value", [math.nan, math.inf, None], ids=str)
def test_a_loss_that_is_not_finite_is_found_with_its_first_step(value):
    lines = healthy()
    lines[30]["loss"] = value
    assert sick(lines) == {"finite loss": Verdict.FAULT}
    (found,) = curve_findings(lines).bad
    assert "first in step 31" in found.seen


def test_a_rate_of_zero_is_a_fault_and_a_tiny_one_a_warning():
    assert sick(changed(lr=[0.0] * STEPS)) == {"learning rate": Verdict.FAULT}
    tiny = changed(lr=[1e-6] * STEPS)
    assert sick(tiny, relative=True) == {"learning rate": Verdict.WARNING}
    assert sick(tiny) == {}
    assert sick(changed(lr=[0.01 * (i > 0) for i in range(STEPS)])) == {}


def test_a_gradient_that_vanishes_or_grows_is_found():
    assert sick(changed(gradient_norm=[0.0] * STEPS)) == {"stationarity": Verdict.FAULT}
    grows = changed(gradient_norm=[math.exp(i / 20) for i in range(STEPS)])
    assert sick(grows) == {"stationarity": Verdict.WARNING}
    wavers = changed(gradient_norm=[math.exp(z) for z in noise(3)])
    assert sick(wavers) == {}


@pytest.mark.parametrize("bad, verdict", [(0, None), (3, Verdict.WARNING), (20, Verdict.FAULT)])
def test_skipped_steps_are_counted_by_their_gradients(bad, verdict):
    lines = healthy()
    for line in lines[:bad]:
        line["gradient_norm"] = math.nan
    assert sick(lines) == ({} if verdict is None else {"skipped steps": verdict})
    told = healthy()
    told[40]["skipped"] = bad
    assert sick(told) == sick(healthy(), skipped=bad) == sick(lines)


def test_ranks_that_stay_under_a_rule_that_adapts_are_told_with_the_reason():
    lines = changed(mean_rank=[8.0] * STEPS)
    assert sick(lines) == {"rank changes": Verdict.WARNING}
    long = rule_text(repr(Tolerance(every=100)))
    (found,) = curve_findings(lines, rule=long).bad
    assert "shorter than a cycle of the rule, 100 steps" in found.seen
    assert "every=15" in found.mend
    (found,) = curve_findings(lines, rule=rule_text(repr(Budget(parameters=9)))).bad
    assert "parameters" in found.mend
    assert not curve_findings(lines, rule=rule_text(repr(FixedRank()))).bad
    assert not curve_findings(lines).bad


def test_ranks_of_single_layers_count_where_a_line_has_them():
    lines = changed(mean_rank=[8.0] * STEPS)
    lines[0]["ranks"], lines[20]["ranks"] = [8, 8], [6, 10]
    assert sick(lines) == {}


def test_what_a_loop_has_not_written_is_not_judged():
    lines = [{"loss": line["loss"]} for line in healthy()]
    found = curve_findings(lines, rule=TOLERANCE)
    assert [f.name for f in found] == ["finite loss", "falling loss", "skipped steps"]
    assert not found.bad
    assert not curve_findings([])


def test_a_short_run_tells_nothing_and_raises_no_alarm():
    assert sick(healthy(12)) == {}
    assert trend([1.0] * 19) is None
    assert trend([1.0] * 19 + [math.nan]) is None


def test_noise_is_measured_apart_from_the_course():
    course = trend([10.0 - 0.1 * i for i in range(100)])
    assert course.fell and course.error < 0.05
    assert course.start - course.end == pytest.approx(8.0)


@pytest.mark.parametrize(
    "rule", [Budget(parameters=7), Tolerance(max_rank=3), TailTolerance(rtol=0.5), FixedRank()]
)
def test_the_numbers_of_a_rule_are_read_back_from_its_text(rule):
    read = rule_text(repr(rule))
    assert read.kind == type(rule).__name__
    assert read.options == {name: n for name, n in vars(rule).items() if n is not None}
    assert read.adapts == (not isinstance(rule, FixedRank))


@pytest.mark.parametrize("text", ["", "Mine(", "Mine(x=open('y'))", "a b"])
def test_a_text_that_is_no_rule_has_no_options(text):
    assert rule_text(text) == RuleText(text, {})


def layers(*ranks: int, m: int = 9, n: int = 7) -> dict[str, Weight]:
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    return {str(i): Weight(truncated_svd(W, r), 1.0, True) for i, r in enumerate(ranks)}


@pytest.mark.parametrize(
    ("ranks", "rule", "words"),
    [
        ((3, 3), Tolerance(max_rank=3), "`max_rank`"),
        ((7, 7), Tolerance(), "full rank"),
        ((1, 1), Tolerance(), "the least rank"),
        ((2, 3), Budget(parameters=50), "85 parameters in the end, above the budget of 50"),
    ],
)
def test_ranks_that_a_bound_holds_are_told(ranks, rule, words):
    (found,) = rank_bounds(layers(*ranks), rule_text(repr(rule)))
    assert found.verdict is Verdict.WARNING
    assert words in found.seen


@pytest.mark.parametrize(
    ("ranks", "rule"),
    [((3, 2), Tolerance(max_rank=3)), ((1, 2), Tolerance()), ((2, 3), Budget(parameters=85))],
)
def test_ranks_of_their_own_are_fine(ranks, rule):
    (found,) = rank_bounds(layers(*ranks), rule_text(repr(rule)))
    assert found.verdict is Verdict.OK


def test_a_fixed_rank_is_no_bound():
    assert not rank_bounds(layers(1, 1), rule_text(repr(FixedRank())))
    assert not rank_bounds(layers(1, 1), None)


@pytest.mark.parametrize(
    "met, verdict",
    [
        ({"detours": 2}, None),
        ({"bounded": 3}, None),
        ({"repaired": 1}, Verdict.WARNING),
        ({"rewound": 1, "repaired": 2}, Verdict.WARNING),
    ],
    ids=["detours", "bounded", "repaired", "rewound"],
)
def test_what_the_guard_has_met_is_told(met, verdict):
    lines = healthy()
    lines[30]["incidents"] = met
    assert sick(lines) == ({} if verdict is None else {"incidents": verdict})
    (finding,) = [f for f in curve_findings(lines) if f.name == "incidents"]
    assert all(f"{count} {name}" in finding.seen for name, count in met.items())
