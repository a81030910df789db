"""A folder of training states on several processes: one writes, one chooses for all."""

import warnings

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

import rankwise as rw
from processes import on_processes
from scenes import RULE
from sharded import batch, loss_of, network


def made():
    net = network(dropout=0.0)
    rw.distributed.prepare(net)
    return net, DDP(net), rw.Optimizer(net, lr=0.05, rank_rule=RULE)


def go(call, optimizer, step: int) -> None:
    optimizer.zero_grad()
    x, y = batch(step, 8)
    loss_of(call, x, y).backward()
    optimizer.step()


def numbers(net) -> list:
    return [t.detach().tolist() for t in net.state_dict().values()]


def on_two(rank, folder):
    net, call, optimizer = made()
    state = {}
    for step in (1, 2, 3):
        go(call, optimizer, step)
        rw.save_training(folder, model=net, optimizer=optimizer, progress={"step": step}, keep=2)
        state[step] = numbers(net)
    found = {"names": sorted(p.name for p in folder.iterdir()), "told": 0}
    torch.distributed.barrier()
    if rank == 0:
        file = folder / "step-000003.safetensors"
        file.write_bytes(file.read_bytes()[:-5])
    net, call, optimizer = made()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found["progress"] = rw.load_training(folder, model=net, optimizer=optimizer)
    found["told"] = sum("step-000003.safetensors is damaged" in str(w.message) for w in told)
    found["same"] = numbers(net) == state[2]
    go(call, optimizer, 3)
    found["goes on"] = numbers(net) == state[3]
    torch.distributed.barrier()
    if rank == 0:
        for file in folder.iterdir():
            file.write_bytes(b"")
    with pytest.raises((ValueError, RuntimeError)) as error:
        rw.load_training(folder, model=net, optimizer=optimizer)
    found["error"] = f"{type(error.value).__name__}: {error.value}"
    return found


def test_all_go_on_from_the_file_that_the_first_one_finds_whole(tmp_path):
    first, second = on_processes(2, on_two, tmp_path)
    for found in (first, second):
        assert found["names"] == ["step-000002.safetensors", "step-000003.safetensors"]
        assert found["progress"] == {"step": 2}
        assert found["same"] and found["goes on"]
    assert (first["told"], second["told"]) == (1, 0)
    assert "is whole: " in first["error"] and "step-000003" in first["error"]
    assert first["error"].startswith("ValueError: no checkpoint in ")
    assert second["error"] == "RuntimeError: process 0 failed: " + first["error"]


def told(work) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def one_fails(rank, folder):
    """What each process is told where the second one alone gives, or finds, something wrong."""
    net, call, optimizer = made()
    go(call, optimizer, 1)
    run = {"model": net, "optimizer": optimizer}
    right = {"progress": {"step": 1}, "keep": 2, "score": 0.5}
    wrong = {
        "score": {"score": float("nan")},
        "step": {"progress": {"step": 2**63}},
        "progress": {"progress": {"step": 1, "seen": {1, 2}}},
        "keep": {"keep": 0},
    }
    found = {}
    for name, change in wrong.items():
        given = right | (change if rank == 1 else {})
        found[name] = told(lambda given=given: rw.save_training(folder / "a", **run, **given))
    sound = net.head.weight.detach().clone()
    if rank == 1:
        net.head.weight.data[0] = float("nan")
    found["nan"] = told(lambda: rw.save_training(folder / "a", **run, **right))
    found["written"] = (folder / "a").exists()
    net.head.weight.data.copy_(sound)
    rw.save_training(folder / "b.safetensors", **run, progress={})
    before = numbers(net)
    go(call, optimizer, 2)
    after = numbers(net)
    own = folder / ("b.safetensors" if rank == 0 else "c.safetensors")
    found["gone"] = told(lambda: rw.load_training(own, **run))
    # A file that can be read and is of another model.
    other = rw.Optimizer(network(dropout=0.0), lr=0.05) if rank == 1 else optimizer
    found["other"] = told(
        lambda: rw.load_training(folder / "b.safetensors", model=net, optimizer=other)
    )
    found["unchanged"] = numbers(net) == after
    rw.load_training(folder / "b.safetensors", **run)
    found["loaded"] = numbers(net) == before
    return found


def test_what_one_process_cannot_save_or_load_no_other_waits_for(tmp_path):
    first, second = on_processes(2, one_fails, tmp_path)
    for found in (first, second):
        assert not found.pop("written")
        assert found.pop("unchanged") and found.pop("loaded")
    words = {
        "score": "ValueError: `score` must be a finite number",
        "step": "ValueError: `path` is a folder, whose files are numbered",
        "progress": "TypeError: `progress` must be what JSON can hold",
        "keep": "ValueError: `keep` must be an integer",
        "nan": "ValueError: ",
        "gone": "FileNotFoundError: ",
        "other": "ValueError: `optimizer` trains parameters that are not in `model`",
    }
    assert set(first) == set(second) == set(words)
    for name, word in words.items():
        assert second[name].startswith(word), name
        assert first[name] == "RuntimeError: process 1 failed: " + second[name]
