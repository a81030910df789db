"""What a run keeps to go on from, and what it does where that is damaged or was left half."""

import dataclasses
import json
import resource
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from image_files import write_idx
from rankwise.cli.main import main
from rankwise.recipes.history import Watcher
from rankwise.recipes.train import train_classifier
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.training import Interrupted
from rankwise.report.history import read_history

SILENT = Watcher(say=lambda message: None, step=lambda line: None)
MEASURED = ("seconds", "memory", "peak_memory")
STEPS = 8


@pytest.fixture
def options(tmp_path) -> TrainOptions:
    return TrainOptions(
        data=str(write_idx(tmp_path / "data")), steps=STEPS, batch_size=16, keep=0.2, dense=False,
        output=tmp_path / "run", save_every=2,
    )  # fmt: skip


@pytest.fixture
def untouched(options, tmp_path):
    folder = tmp_path / "untouched"
    train_classifier(dataclasses.replace(options, output=folder), SILENT)
    return folder


def stopped(options, step: int) -> None:
    """A run that was asked to stop after this step."""

    def interrupt(line):
        if line["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_classifier(options, Watcher(say=lambda message: None, step=interrupt))


def resumed(options, **changes) -> None:
    train_classifier(TrainOptions(output=options.output, resume=True, save_every=2, **changes),
                     SILENT)  # fmt: skip


def same(one, other) -> bool:
    """Weights and history, to the last bit."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    lines = [
        [{k: v for k, v in line.items() if k not in MEASURED} for line in read_history(path)]
        for path in (one / "history.jsonl", other / "history.jsonl")
    ]
    assert len(lines[0]) == STEPS
    return lines[0] == lines[1] and all(torch.equal(a[name], t) for name, t in b.items())


def kept(folder) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_the_newest_two_stay(untouched):
    assert kept(untouched) == ["step-000006.safetensors", "step-000008.safetensors"]


def test_how_many_stay_is_asked_anew_and_is_no_part_of_the_run(options, untouched):
    stopped(options, 4)
    resumed(options, keep_checkpoints=3)
    assert kept(options.output) == [f"step-00000{n}.safetensors" for n in (4, 6, 8)]
    assert same(untouched, options.output)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(options, untouched):
    stopped(options, 5)
    newest = options.output / "checkpoints" / "step-000005.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=f"{newest} is damaged.*from .*step-000004"):
        resumed(options)
    assert same(untouched, options.output)
    assert kept(options.output) == kept(untouched)


def test_a_run_of_an_earlier_rankwise_goes_on(options, untouched):
    """It had one checkpoint, of the same content, and its options no number of them and no sum."""
    stopped(options, 5)
    folder = options.output
    (folder / "checkpoints" / "step-000005.safetensors").rename(folder / "checkpoint.safetensors")
    shutil.rmtree(folder / "checkpoints")
    written = json.loads((folder / "options.json").read_text())
    assert written.pop("keep_checkpoints") == 2
    (folder / "SHA256SUMS").unlink()
    (folder / "options.json").write_text(json.dumps(written))
    resumed(options)
    assert same(untouched, folder)
    assert kept(folder) == kept(untouched) and not (folder / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("anew", [False, True])
def test_what_killed_processes_left_is_removed(options, anew):
    stopped(options, 3)
    left = options.output / ".options.json.0123abcd.tmp"
    beside = options.output / "checkpoints" / ".step-000004.safetensors.0123abcd.tmp"
    for path in (left, beside):
        path.write_text("half")
    mine = options.output / ".mine.tmp"
    mine.write_text("kept")
    if anew:
        train_classifier(dataclasses.replace(options, overwrite=True), SILENT)
    else:
        resumed(options)
    assert not left.exists() and not beside.exists() and mine.exists()


@contextmanager
def full_disk(room: int):
    """Files end at so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(options, untouched, capsys):
    stopped(options, 4)
    arguments = ["train", "--output", str(options.output), "--resume", "--save-every", "2"]
    with full_disk(20_000):
        status = main(arguments)
    *_, line = capsys.readouterr().err.splitlines()
    file = options.output / "checkpoints" / "step-000006.safetensors"
    told = "could not be written (File too large); what was there is as it was"
    assert (status, line) == (2, f"rankwise: error: {file}: {told}")
    assert main(arguments) == 0
    assert same(untouched, options.output)
