"""Training from scratch, on small squares: its files, its exactness, its refusals."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise as rw
from image_files import write_idx
from rankwise.recipes import training
from rankwise.recipes.comparison import in_use
from rankwise.recipes.history import Watcher
from rankwise.recipes.images import read_images
from rankwise.recipes.networks import network
from rankwise.recipes.train import Outcome, train_classifier
from rankwise.recipes.train_options import TrainOptions

SILENT = Watcher(say=lambda message: None, step=lambda line: None)
STEPS = 12
MEASURED = ("seconds", "memory", "peak_memory")
TIMED = ("seconds_per_step", "latency")
OWN = ("peak_memory_bytes", "options")


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        data=str(write_idx(tmp_path / "data")), steps=STEPS, batch_size=16, keep=0.2,
        output=tmp_path / "run", save_every=4,
    )  # fmt: skip


def with_(options: TrainOptions, **changes) -> TrainOptions:
    return dataclasses.replace(options, **changes)


def untimed(outcome: Outcome) -> tuple:
    metrics = {
        k: v for k, v in outcome.metrics.items() if k not in ("peak_memory_bytes", "options")
    }
    for name in ("dense", "low_rank"):
        metrics[name] = {k: v for k, v in metrics[name].items() if k not in TIMED}
    lines = {
        name: [{k: v for k, v in line.items() if k not in MEASURED} for line in history]
        for name, history in outcome.histories.items()
    }
    return metrics, lines


def interrupting(stop: int) -> Watcher:
    def interrupt(line):
        if line["step"] == stop:
            signal.raise_signal(signal.SIGTERM)

    return Watcher(say=lambda message: None, step=interrupt)


def test_the_folder_holds_what_is_promised(options):
    outcome = train_classifier(options, SILENT)
    folder = options.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "labels.json").read_text()) == ["0", "1", "2"]
    for name, path in (("low_rank", folder), ("dense", folder / "dense")):
        assert metrics[name]["bytes"] == (path / "model.safetensors").stat().st_size
        lines = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        assert metrics[name]["parameters"] == lines[-1]["parameters"]
        assert set(metrics[name]["latency"]) == {"1", "32"}


def test_the_numbers_are_those_of_the_networks(options):
    metrics = train_classifier(options, SILENT).metrics
    dense = network("mlp", classes=3, channels=1, size=12, seed=0)
    whole = sum(p.numel() for p in dense.parameters())
    maps = {"1": (512, 144), "3": (512, 512)}
    weights = sum(m * n for m, n in maps.values())
    kept = sum(metrics["ranks"][name] * sum(shape) for name, shape in maps.items())
    assert metrics["dense"]["parameters"] == whole
    assert metrics["dense"]["factorised"] == weights
    assert metrics["low_rank"]["factorised"] == kept
    assert metrics["low_rank"]["parameters"] == whole - weights + kept <= 0.2 * whole
    assert metrics["removed"] == pytest.approx(1 - (whole - weights + kept) / whole)
    assert metrics["dense"]["flops_per_image"] == 2 * (weights + 3 * 512)
    assert metrics["low_rank"]["flops_per_image"] == 2 * (kept + 3 * 512)


@pytest.mark.parametrize("part", ["low_rank", "dense"])
def test_the_saved_networks_have_the_accuracy_that_is_told(options, part):
    options = with_(options, steps=60, batch_size=20)
    metrics = train_classifier(options, SILENT).metrics
    data, model = read_images(options.data), network("mlp", classes=3, channels=1, size=12, seed=0)
    if part == "dense":
        model.load_state_dict(load_file(options.output / "dense" / "model.safetensors"))
    else:
        rw.factorize_(model, rank=1, min_features=16)
        rw.load(model, options.output / "model.safetensors")
    with torch.no_grad():
        right = in_use(model)(data.test).argmax(1) == data.test_labels
    assert metrics[part]["accuracy"] == pytest.approx(float(right.float().mean())) == 1.0


def test_the_table_says_what_the_metrics_say(options):
    metrics = train_classifier(options, SILENT).metrics
    lines = (options.output / "table.md").read_text().splitlines()
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:5]] for line in lines
    }
    dense, low_rank = metrics["dense"], metrics["low_rank"]
    assert cells[""] == ["dense", "low rank", "change"]
    assert cells["parameters"][:2] == [f"{dense['parameters']:,}", f"{low_rank['parameters']:,}"]
    assert cells["parameters"][2] == f"x {low_rank['parameters'] / dense['parameters']:.3f}"
    gain = 100 * (low_rank["accuracy"] - dense["accuracy"])
    assert cells["test accuracy, %"] == [
        f"{100 * dense['accuracy']:.2f}", f"{100 * low_rank['accuracy']:.2f}", f"{gain:+.2f}",
    ]  # fmt: skip
    assert cells["latency at batch 32, ms"][0] == f"{1e3 * dense['latency']['32']:.3f}"


def test_without_a_dense_twin_its_size_is_told_and_no_accuracy(options):
    outcome = train_classifier(with_(options, dense=False), SILENT)
    assert set(outcome.histories) == {"low_rank"}
    assert "accuracy" not in outcome.metrics["dense"]
    table = (options.output / "table.md").read_text()
    assert "| test loss | - |" in table and "| parameters | 3" in table
    assert not (options.output / "dense" / "checkpoints").exists()


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(options, tmp_path):
    one = train_classifier(options, SILENT)
    same = train_classifier(with_(options, output=tmp_path / "same"), SILENT)
    other = train_classifier(with_(options, output=tmp_path / "other", seed=1), SILENT)
    assert untimed(one) == untimed(same)
    assert untimed(one) != untimed(other)


@pytest.mark.parametrize("stop", [1, 4, 7, STEPS + 1, STEPS + 7])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model": "cnn", "tolerance": 0.2, "keep": None},
        {"max_condition": 2.0, "adversarial": 0.1, "adversarial_steps": 2},
    ],
)
def test_an_interrupted_run_goes_on_exactly(options, tmp_path, stop, change):
    """In either network, by batch norm's statistics too."""
    options = with_(options, **change)
    whole = train_classifier(with_(options, output=tmp_path / "whole"), SILENT)
    with pytest.raises(training.Interrupted, match=f"--resume --output {options.output}$"):
        train_classifier(options, interrupting(stop))
    assert not (options.output / "metrics.json").exists()
    resumed = train_classifier(TrainOptions(output=options.output, resume=True), SILENT)
    assert untimed(resumed) == untimed(whole)
    for name in ("model.safetensors", "dense/model.safetensors"):
        one, other = (load_file(f / name) for f in (tmp_path / "whole", options.output))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("stop", [7, STEPS + 2, STEPS + 7])
def test_a_run_killed_between_checkpoints_repeats_the_lost_steps(options, tmp_path, stop):
    whole = train_classifier(with_(options, output=tmp_path / "whole"), SILENT)

    class Killed(Exception):
        pass

    def kill(line):
        if line["step"] == stop:
            raise Killed

    with pytest.raises(Killed):
        train_classifier(options, Watcher(say=lambda message: None, step=kill))
    resumed = train_classifier(TrainOptions(output=options.output, resume=True), SILENT)
    assert untimed(resumed) == untimed(whole)


def test_a_resumed_run_keeps_its_options_and_its_data(options):
    with pytest.raises(training.Interrupted):
        train_classifier(options, interrupting(5))
    with pytest.raises(ValueError, match=r"leave out --keep 0\.5 \(was 0\.2\)"):
        train_classifier(TrainOptions(output=options.output, resume=True, keep=0.5), SILENT)
    write_idx(Path(options.data), rows=63)
    with pytest.raises(ValueError, match="started with other data"):
        train_classifier(TrainOptions(output=options.output, resume=True), SILENT)


def test_an_earlier_run_is_not_overwritten_unless_asked(options):
    train_classifier(options, SILENT)
    with pytest.raises(ValueError, match="is not empty; --resume .*--overwrite"):
        train_classifier(options, SILENT)
    with pytest.raises(ValueError, match="is finished"):
        train_classifier(TrainOptions(output=options.output, resume=True), SILENT)
    train_classifier(with_(options, overwrite=True, dense=False), SILENT)
    assert not (options.output / "dense" / "history.jsonl").exists()


@pytest.mark.parametrize("change", [{"rate_free": True}, {"tolerance": 0.3, "keep": None}])
def test_neither_rate_nor_budget_has_to_be_chosen(options, change):
    metrics = train_classifier(with_(options, steps=60, batch_size=20, **change), SILENT).metrics
    assert metrics["low_rank"]["accuracy"] > 0.9
    assert 0 < metrics["removed"] < 1


def test_epochs_count_whole_batches():
    assert TrainOptions().step_count(60_000) == 15 * 468
    assert TrainOptions(model="mine:net").step_count(1000) == 10 * 7
    assert TrainOptions(epochs=3, batch_size=500).step_count(60) == 3
    assert TrainOptions(steps=5).step_count(60_000) == 5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"lr": float("nan")}, "--lr must be finite and positive"),
        ({"keep": 1.0}, r"--keep must be in \(0, 1\), got 1.0"),
        ({"tolerance": 0.1}, "--keep and --tolerance are different rank rules"),
        ({"tolerance": 1.5, "keep": None}, r"--tolerance must be in \[0, 1\)"),
        ({"epochs": 2}, "--epochs and --steps both say how long"),
        ({"lr": 0.1, "rate_free": True}, "--lr and --rate-free exclude each other"),
        ({"resume": True, "overwrite": True}, "--resume .* --overwrite"),
        ({"beta": -1.0}, "--beta must be finite and not negative, got -1.0"),
        ({"max_norm": 0.0}, "--max-norm must be finite and positive, got 0.0"),
        ({"max_condition": 0.5}, "--max-condition must be finite and at least 1, got 0.5"),
        ({"beta": 0.1, "max_norm": 1.0}, "--beta and --max-norm are different ways to shape"),
        ({"adversarial": 2.0}, r"--adversarial must be in \[0, 1\], of a pixel, got 2.0"),
        ({"adversarial_steps": 3}, "--adversarial-steps needs --adversarial"),
        ({"keep": 0.001}, "--keep must be at least 0.0.* here"),
        ({"model": "resnet"}, "one of mlp, lenet, cnn, vgg, mobile, vit or an import path"),
        ({"model": "vit", "data": "nowhere"}, "--data nowhere is no folder"),
    ],
)
def test_options_that_cannot_work_are_named(options, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_classifier(with_(options, **change), SILENT)
    assert not options.output.exists()


def spectra(options: TrainOptions) -> list[torch.Tensor]:
    """Singular values of the low-rank layers of the saved network, on their rank."""
    train_classifier(with_(options, dense=False), SILENT)
    model = network("mlp", classes=3, channels=1, size=12, seed=0)
    rw.factorize_(model, rank=1, min_features=16)
    rw.load(model, options.output / "model.safetensors")
    layers = [m for m in model.modules() if isinstance(m, rw.LowRankLinear)]
    return [torch.linalg.svdvals(layer.factors()[1].double()) for layer in layers]


def test_spectra_are_shaped_as_asked(options, tmp_path):
    plain = spectra(options)
    limited = spectra(with_(options, max_norm=0.3, output=tmp_path / "norm"))
    even = spectra(with_(options, max_condition=1.01, output=tmp_path / "condition"))
    pulled = spectra(with_(options, beta=2.0, output=tmp_path / "beta"))
    assert all(s[0] <= 0.3 * (1 + 1e-5) < t[0] for s, t in zip(limited, plain, strict=True))
    assert all(s[0] <= 1.01 * s[-1] * (1 + 1e-5) for s in even)
    assert all(s[0] > 1.01 * s[-1] for s in plain)
    ratios = [(s[0] / s[-1], t[0] / t[-1]) for s, t in zip(pulled, plain, strict=True)]
    assert all(own < other for own, other in ratios)
