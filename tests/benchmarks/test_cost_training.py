"""What the cost suite reads off runs."""

import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from cost.accuracy import SMOOTH, Arm  # noqa: E402
from cost.report import report  # noqa: E402
from cost.training import ends, mean_losses, reaches, shortened  # noqa: E402


def run(steps, train, validation):
    return {"steps": steps, "train_loss": train, "eval_loss": validation}


LORA = run(100, 1.0, 2.0)


def test_the_shortest_run_that_is_as_good_counts_in_lora_s_time():
    runs = {"0.6": run(60, 1.1, 2.1), "0.7": run(70, 0.9, 2.1), "0.9": run(90, 0.8, 2.0)}
    found = reaches(LORA, runs, 0.8)
    assert found == pytest.approx({"training": 0.56, "validation": 0.72, "both": 0.72})


def test_a_longer_run_may_be_the_worse_one():
    runs = {"0.6": run(60, 1.0, 2.0), "0.7": run(70, 1.2, 2.2)}
    assert reaches(LORA, runs, 1.0)["both"] == pytest.approx(0.6)


def test_both_measures_are_asked_of_the_same_run():
    runs = {"0.6": run(60, 1.0, 2.5), "0.7": run(70, 1.5, 2.0)}
    found = reaches(LORA, runs, 1.0)
    assert found == {"training": 0.6, "validation": 0.7, "both": None}


def test_a_run_that_diverged_reaches_nothing():
    assert reaches(LORA, {"1": run(100, float("nan"), float("nan"))}, 1.0)["both"] is None


def test_the_end_is_the_same_part_of_a_short_and_a_long_run():
    long = {"losses": [9.0] * 8 + [1.0, 3.0], "eval_loss": 5.0}
    short = {"losses": [9.0] * 4 + [2.0], "eval_loss": 7.0}
    assert ends([long], 0.2) == {"train_loss": 2.0, "eval_loss": 5.0}
    assert ends([short], 0.2) == {"train_loss": 2.0, "eval_loss": 7.0}
    assert ends([long, short], 0.2) == {"train_loss": 2.0, "eval_loss": 6.0}


def test_curves_end_where_the_first_seed_ends():
    assert mean_losses([{"losses": [1.0, 2.0, 3.0]}, {"losses": [3.0, 2.0]}]) == [2.0, 2.0]


def test_a_shortened_run_differs_in_its_steps_alone():
    whole, part = shortened("reviews", 150, 1.0), shortened("reviews", 150, 0.7)
    assert (whole.steps, part.steps) == (150, 105)
    assert (whole.rank, whole.lr, whole.mean_rank) == (part.rank, part.lr, part.mean_rank)


def test_an_accuracy_is_reached_by_the_mean_of_the_last():
    arm = Arm(model=None, optimizer=None)
    for index in range(SMOOTH - 1):
        arm.course.append((index, 0.0, 1.0))
        assert arm.smooth() == 0.0
    arm.course += [(9, 0.0, 1.0), (10, 0.0, 0.7)]
    assert arm.smooth() == pytest.approx((SMOOTH - 1 + 0.7) / SMOOTH)


MACHINE = {"processor": "P", "threads": 1, "cores": 2, "device": "cpu", "versions": {},
           "date": "D", "load": 0.0}  # fmt: skip


def test_the_tables_say_what_was_not_reached():
    course = [(10, 2.0, 0.5), (20, 4.0, 0.9)]
    seconds = {"dense, slow": 4.0, "dense, fast": 2.0, "rankwise, 5%": 1.0, "rankwise, 1%": None}
    scratch = {
        "width": 8,
        "target": 0.9,
        "seconds": seconds,
        "courses": dict.fromkeys(seconds, course),
    }
    runs = {"0.5": run(50, 1.0, 3.0)}
    training = {
        "task": "reviews",
        "rate": 1e-3,
        "seconds a step": {"LoRA": 1.0, "rankwise": 0.8},
        "LoRA": LORA,
        "rankwise": runs,
        "reaches": reaches(LORA, runs, 0.8),
    }
    text = report({"machine": MACHINE, "training": [training], "scratch": [scratch]})
    assert "| 8 | rankwise, 5% | 90% | 20 | 1.00 | 0.50 | 0.2 |" in text
    assert "| 8 | rankwise, 1% | 90% | 20 | not reached |  | 0.2 |" in text
    assert "| reviews | rankwise, 0.5 of the steps | 50 | 0.40 | 1.0000 | 3.0000 |" in text
    assert "| reviews | LoRA's end loss (training) |  | 0.40 |  |  |" in text
    assert "| reviews | LoRA's end loss (both) |  | not reached |  |  |" in text
