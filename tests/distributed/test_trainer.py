"""`transformers.Trainer` under torchrun: the run of one process, and going on on any number."""

import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

import trainer_program
from loops import checkpointing, classifier, ranks
from processes import on_processes
from scenes import distance, same
from trainer_program import STEPS, trained


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder of a run of two processes that torchrun has started."""
    folder = tmp_path_factory.mktemp("torchrun")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(
        [*launch, trainer_program.__file__, str(folder), "2"],
        env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    AcceleratorState._reset_state(reset_partial_state=True)
    return trained(tmp_path_factory.mktemp("alone"), 1, prepare=False)


def is_the_run(found, expected) -> None:
    for end, state, log, _ in found:
        assert end == expected[0] != ranks(classifier())
        assert state.keys() == expected[1].keys()
        assert distance(floats(state), floats(expected[1])) < 1e-10
        for name in ("loss", "rankwise/gradient_norm"):
            values = [line[name] for line in log]
            assert values == pytest.approx([line[name] for line in expected[2]], rel=1e-6)
    assert same([floats(state) for _, state, _, _ in found])


def floats(state):
    return {name: t for name, t in state.items() if t.is_floating_point()}


def test_two_processes_of_torchrun_are_one_process(launched, alone):
    found = [torch.load(launched / f"found-{rank}.pt", weights_only=False) for rank in range(2)]
    is_the_run(found, alone)
    # One message a step, though each step has two backward passes.
    assert [traffic.messages for *_, traffic in found] == [STEPS, STEPS]


def going_on(rank, world, launched, folder):
    AcceleratorState._reset_state(reset_partial_state=True)
    return trained(folder, world, resume=str(launched / "checkpoint-4"))


@pytest.mark.parametrize("world", [2, 4])
def test_a_run_goes_on_on_as_many_processes_and_on_more(launched, alone, tmp_path, world):
    is_the_run(on_processes(world, going_on, world, launched, tmp_path), alone)


@pytest.mark.parametrize("prepare", [True, False])
def test_a_run_goes_on_on_one_process_prepared_or_not(launched, alone, tmp_path, prepare):
    resume = str(launched / "checkpoint-4")
    is_the_run([trained(tmp_path, 1, prepare=prepare, resume=resume)], alone)


def other_runs(rank, folder):
    found = []
    for options in OTHERS:
        AcceleratorState._reset_state(reset_partial_state=True)
        found.append(trained(folder, 2, **options))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"Call `rankwise.distributed.prepare\(model\)` before"):
        trained(folder, 2, prepare=False)
    return found


OTHERS = ({"head": False}, checkpointing())


def test_adapters_alone_and_activation_checkpoints_and_what_was_not_prepared(tmp_path):
    found = on_processes(2, other_runs, tmp_path)
    for options, outcomes in zip(OTHERS, zip(*found, strict=True), strict=True):
        AcceleratorState._reset_state(reset_partial_state=True)
        is_the_run(outcomes, trained(tmp_path, 1, prepare=False, **options))
