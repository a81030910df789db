"""Federated training of small squares: its files, its exactness, its bytes, its refusals."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise as rw
from image_files import write_idx
from rankwise.recipes.comparison import in_use
from rankwise.recipes.federate import Outcome, federate, holdings
from rankwise.recipes.federate_contenders import Falling
from rankwise.recipes.federate_options import FederateOptions
from rankwise.recipes.federate_table import reached
from rankwise.recipes.history import Watcher
from rankwise.recipes.images import read_images
from rankwise.recipes.networks import network
from rankwise.recipes.training import Interrupted

SILENT = Watcher(say=lambda message: None, step=lambda line: None)
ROUNDS = 3
NETWORK = """
from torch import nn
def build(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(size ** 2, 40), nn.ReLU(), nn.Linear(40, classes))
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch) -> FederateOptions:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network_to_federate.py").write_text(NETWORK)
    return FederateOptions(
        data=str(write_idx(tmp_path / "data")), model="network_to_federate:build", clients=3,
        alpha=0.5, rounds=ROUNDS, local_steps=3, fedavg_steps=3, fedavg_lr=0.05, rank=3, max_rank=4,
        gradient_batches=2, batch_size=8, output=tmp_path / "run",
    )  # fmt: skip


def with_(options: FederateOptions, **changes) -> FederateOptions:
    return dataclasses.replace(options, **changes)


def untimed(outcome: Outcome) -> tuple:
    metrics = {
        k: v for k, v in outcome.metrics.items() if k not in ("peak_memory_bytes", "options")
    }
    for name, measures in outcome.metrics["results"].items():
        metrics["results"][name] = {k: v for k, v in measures.items() if k != "seconds"}
    lines = {
        name: [{k: v for k, v in line.items() if k != "seconds"} for line in history]
        for name, history in outcome.histories.items()
    }
    return metrics, lines


def test_the_folder_holds_what_is_promised(options):
    everything = ("fedavg", "factor-average", "none", "simplified")
    outcome = federate(with_(options, compare=everything), SILENT)
    folder = options.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert list(metrics["results"]) == ["full", *everything]
    assert (folder / "federate.png").read_bytes().startswith(b"\x89PNG")
    for name in metrics["results"]:
        lines = [json.loads(x) for x in (folder / name / "rounds.jsonl").read_text().splitlines()]
        assert lines == json.loads(json.dumps(outcome.histories[name]))
        assert [line["step"] for line in lines] == list(range(1, ROUNDS + 1))
        assert all(line["answered"] == line["participants"] == 3 for line in lines)
    held = json.loads((folder / "clients.json").read_text())
    data = read_images(options.data)
    for name, rows in holdings(options, data).items():
        counts = [int((data.labels[rows] == label).sum()) for label in range(3)]
        assert held["images"][name] == counts


def test_what_is_sent_is_counted_by_hand(options):
    """FedAvg: all numbers, both ways. FeDLRT: bases, directions in half the bytes, cores, rest."""
    outcome = federate(with_(options, tolerance=0.0, rank=4), SILENT)
    dense = 144 * 40 + 40 + 40 * 3 + 3
    results = outcome.metrics["results"]
    assert results["fedavg"]["bytes"] == 2 * 4 * dense * 3 * ROUNDS
    m, n, r, rest = 40, 144, 4, 40 + 40 * 3 + 3
    directions, core = (m + n) * r // 2, 4 * r * r + rest
    down = (m + n) * r + r * r + rest + directions + core
    up = directions + core + core
    assert results["full"]["ranks"] == {"1": r}
    assert results["full"]["bytes_down"] == 4 * down * 3 * ROUNDS
    assert results["full"]["bytes_up"] == 4 * up * 3 * ROUNDS
    assert results["full"]["share"] == results["full"]["bytes"] / results["fedavg"]["bytes"]


def test_the_saved_networks_have_the_accuracy_that_is_told(options):
    results = federate(with_(options, rounds=10), SILENT).metrics["results"]
    data, facts = read_images(options.data), {"classes": 3, "channels": 1, "size": 12}
    dense, low_rank = (network(options.model, **facts, seed=0) for _ in range(2))
    dense.load_state_dict(load_file(options.output / "fedavg" / "model.safetensors"))
    rw.factorize_(low_rank, rank=1, min_features=16)
    rw.load(low_rank, options.output / "full" / "model.safetensors")
    for name, model in (("fedavg", dense), ("full", low_rank)):
        with torch.no_grad():
            right = in_use(model)(data.test).argmax(1) == data.test_labels
        assert results[name]["accuracy"] == pytest.approx(float(right.float().mean()))
        assert results[name]["accuracy"] > 0.9


@pytest.mark.parametrize("stop", [1, ROUNDS, ROUNDS + 2])
def test_an_interrupted_run_goes_on_exactly(options, tmp_path, stop):
    options = with_(options, participation=0.7)
    whole = federate(with_(options, output=tmp_path / "whole"), SILENT)

    def interrupt(line):
        if line["step"] == stop:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"--resume --output {options.output}$"):
        federate(options, Watcher(say=lambda message: None, step=interrupt))
    assert not (options.output / "metrics.json").exists()
    resumed = federate(
        FederateOptions(model=options.model, output=options.output, resume=True), SILENT
    )
    assert untimed(resumed) == untimed(whole)
    for name in ("full", "fedavg"):
        one, other = (
            load_file(f / name / "model.safetensors") for f in (tmp_path / "whole", options.output)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_killed_between_checkpoints_repeats_the_lost_rounds(options, tmp_path, stop):
    whole = federate(with_(options, output=tmp_path / "whole"), SILENT)

    class Killed(Exception):
        pass

    def kill(line):
        if line["step"] == stop:
            raise Killed

    with pytest.raises(Killed):
        federate(with_(options, save_every=2), Watcher(say=lambda message: None, step=kill))
    resumed = federate(
        FederateOptions(model=options.model, output=options.output, resume=True), SILENT
    )
    assert untimed(resumed) == untimed(whole)


def test_a_resumed_run_keeps_its_options_and_its_data(options):
    def interrupt(line):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        federate(options, Watcher(say=lambda message: None, step=interrupt))
    with pytest.raises(ValueError, match=r"leave out --alpha 9\.0 \(was 0\.5\)"):
        federate(
            FederateOptions(model=options.model, output=options.output, resume=True, alpha=9.0),
            SILENT,
        )
    held = options.output / "clients.json"
    written = held.read_text()
    held.write_text("{")
    with pytest.raises(ValueError, match=f"{held} is damaged"):
        federate(FederateOptions(model=options.model, output=options.output, resume=True), SILENT)
    held.write_text(written)
    write_idx(Path(options.data), rows=63)
    with pytest.raises(ValueError, match="started with other data"):
        federate(FederateOptions(model=options.model, output=options.output, resume=True), SILENT)


def test_a_round_that_has_changed_under_a_stopped_run_is_named(options):
    def interrupt(line):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        federate(options, Watcher(say=lambda message: None, step=interrupt))
    (file,) = options.output.glob("*/rounds.jsonl")
    sound = file.read_text()
    line = json.loads(sound)
    file.write_text(json.dumps(line | {"accuracy": line["accuracy"] / 2}) + "\n")
    again = FederateOptions(model=options.model, output=options.output, resume=True)
    with pytest.raises(ValueError, match=r"rounds\.jsonl is not what it was when .*server"):
        federate(again, SILENT)
    file.write_text(sound)
    federate(again, SILENT)


def test_an_earlier_run_is_not_overwritten_unless_asked(options):
    federate(options, SILENT)
    with pytest.raises(ValueError, match="is not empty; --resume .*--overwrite"):
        federate(options, SILENT)
    with pytest.raises(ValueError, match="is finished"):
        federate(FederateOptions(model=options.model, output=options.output, resume=True), SILENT)
    other = options.output / "full" / "thesis.txt"
    other.write_text("")
    federate(with_(options, overwrite=True, correction="none", compare=()), SILENT)
    assert not (options.output / "fedavg").exists()
    assert list((options.output / "full").iterdir()) == [other]


def test_without_fedavg_there_is_no_target(options):
    metrics = federate(with_(options, compare=(), correction="none"), SILENT).metrics
    assert metrics["target"] is None and metrics["results"]["none"]["share"] is None
    assert "of the bytes" not in (options.output / "table.md").read_text()


def test_every_method_trains_on_the_same_split(options, tmp_path):
    one, other = (
        federate(with_(options, compare=c, output=tmp_path / c[0]), SILENT)
        for c in (("fedavg",), ("factor-average", "fedavg"))
    )
    assert untimed(one)[1]["fedavg"] == untimed(other)[1]["fedavg"]


def test_a_client_that_diverges_is_told_and_the_others_go_on(options):
    told = []
    watcher = Watcher(say=lambda message: None, step=lambda line: None, tell=told.append)
    broken = with_(options, lr=1e30, local_steps=2, compare=(), rounds=1)
    outcome = federate(broken, watcher)
    assert outcome.metrics["results"]["full"]["events"] == len(told) == 3
    assert all("dropped in train: FloatingPointError" in line for line in told)
    assert outcome.histories["full"][0]["answered"] == 0


def line(step: int, accuracy: float, down: int, up: int) -> dict:
    return {"step": step, "accuracy": accuracy, "bytes_down": down, "bytes_up": up}


def test_reaching_an_accuracy_by_hand():
    lines = [line(1, 0.5, 3, 4), line(2, 0.7, 10, 20), line(3, 0.6, 100, 200)]
    assert reached(lines, 0.6) == {"round": 2, "bytes": 37}
    assert reached(lines, 0.5) == {"round": 1, "bytes": 7}
    assert reached(lines, 0.71) is None


def test_rates_stay_for_a_while_and_end_above_zero():
    rate = Falling(0.4, rounds=8)
    assert [rate(round) for round in range(8)] == pytest.approx([0.4] * 5 + [0.3, 0.2, 0.1])
    rate = Falling(0.4, rounds=4, held=0.0)
    assert [rate(round) for round in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"clients": 0}, "--clients must be at least 1, got 0"),
        ({"clients": 61}, "--clients must be at most 60, the number of training images, got 61"),
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"alpha": 0.0}, "--alpha must be finite and at least 0.01, got 0.0"),
        ({"alpha": float("nan")}, "--alpha must be finite"),
        ({"lr": float("inf")}, "--lr must be finite and positive"),
        ({"fedavg_lr": -1.0}, "--fedavg-lr must be finite and positive, got -1.0"),
        ({"server_lr": -0.1}, "--server-lr must be finite and not negative, got -0.1"),
        ({"gradient_batches": 0}, "--gradient-batches must be at least 1, got 0"),
        ({"tolerance": 1.0}, r"--tolerance must be in \[0, 1\)"),
        ({"participation": 0.0}, r"--participation must be in \(0, 1\], got 0.0"),
        ({"rank": 5}, "--rank must be at most --max-rank 4, got 5"),
        ({"compare": ("fedprox",)}, "--compare must be among none, .*, got fedprox"),
        ({"compare": ("full",)}, "--compare must not name one twice, got full"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"resume": True, "overwrite": True}, "--resume .* --overwrite"),
        ({"model": "resnet"}, "one of mlp, lenet, cnn, vgg, mobile, vit or an import path"),
        ({"data": "nowhere"}, "--data nowhere is no folder"),
    ],
)
def test_options_that_cannot_work_are_named(options, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        federate(with_(options, **change), SILENT)
    assert not options.output.exists()
