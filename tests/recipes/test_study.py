"""`rankwise study`: what it writes is what happened, and bad options are refused."""

import json

import pytest
import torch

from rankwise.cli.main import main
from rankwise.integrators import BUG, AugmentedBUG, ParallelBUG
from rankwise.recipes.digits import Digits, low_rank_perceptron
from rankwise.recipes.matrix_problems import follow, sensing
from rankwise.recipes.study import StudyOptions, study, summary, table_of, train_digits


def test_a_study_writes_its_table_picture_and_numbers(tmp_path, capsys):
    folder = tmp_path / "study"
    assert main(["study", "--steps", "30", "--output", str(folder)]) == 0
    shown = capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (folder / "study.png").read_bytes()[:4] == b"\x89PNG"
    assert set(metrics["results"]) == {
        "parallel", "checked", "augmented", "abc-psi", "bug", "ksl", "two factors"
    }  # fmt: skip
    assert metrics["results"]["bug"]["gradients"] == 60
    assert metrics["results"]["ksl"]["gradients"] == 90
    assert metrics["results"]["abc-psi"]["gradients"] == 30
    table = (folder / "study.md").read_text()
    for name, result in metrics["results"].items():
        assert name in shown
        assert f"| {name} | {result['loss']:.3g} | " in table


@pytest.mark.parametrize("problem", ["sensing", "flow"])
def test_the_same_seed_gives_the_same_losses_and_another_seed_others(problem, tmp_path):
    def losses(seed: int) -> list[list[float]]:
        options = StudyOptions(problem=problem, steps=5, seed=seed, output=tmp_path / "out")
        return [trace.losses for trace in study(options, lambda name: None)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_the_recorded_stationarity_and_loss_fall_where_descent_is_promised():
    problem = sensing(1e-4, 0)
    trace = follow("parallel", ParallelBUG(), problem, rank=8, rtol=None, steps=60)
    assert all(b <= a for a, b in zip(trace.losses, trace.losses[1:], strict=False))
    assert trace.stationarity[-1] < 0.05 * trace.stationarity[0]
    assert set(trace.ranks) == {8}


def synthetic_digits() -> Digits:
    draw = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(10, 784, generator=draw)
    digits = torch.arange(400) % 10
    images = centres[digits] + torch.randn(400, 784, generator=draw)
    return Digits(images[100:], digits[100:], images[:100], digits[:100])


@pytest.mark.parametrize(
    "integrator, passes", [(ParallelBUG(), 1), (AugmentedBUG(), 1), (BUG(), 2)]
)
def test_a_network_learns_and_every_pass_is_counted(integrator, passes):
    options = StudyOptions(problem="digits", lr=0.02, rank=6)
    trace = train_digits("x", integrator, synthetic_digits(), options, steps=40)
    assert trace.gradients[-1] == 40 * passes
    assert trace.accuracy > 0.9
    assert summary(trace)["loss"] == pytest.approx(sum(trace.losses[-30:]) / 30)
    header, rows = table_of([trace])
    assert len(header) == len(rows[0]) == 7


def test_the_perceptron_keeps_the_size_of_its_signal():
    model = low_rank_perceptron(8, 256, seed=0)
    x = torch.randn(2000, 784, generator=torch.Generator().manual_seed(1))
    assert 0.5 < model[:4](x).square().mean().sqrt().item() < 2.0


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"integrators": ("paralel",)}, "--integrators paralel: choose from parallel, checked"),
        ({"integrators": ()}, "choose from"),
        ({"problem": "mnist"}, "--problem mnist: choose from sensing, flow, digits"),
        ({"rank": 0}, "--rank must be between 1 and 50, got 0"),
        ({"rank": 51}, "--rank must be between 1 and 50, got 51"),
        ({"rtol": 1.0}, "--rtol must be between 0 and 1, got 1"),
        ({"smallest": 0.0}, "--smallest must be in"),
        ({"lr": 0.0}, "--lr must be positive"),
        ({"steps": 0}, "--steps must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    wrong, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        study(StudyOptions(**wrong, output=tmp_path / "out"), lambda name: None)
    assert not (tmp_path / "out").exists()
