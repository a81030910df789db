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
    with pytest.raises(ValueError) as error:
        rw.load_training(folder, model=net, optimizer=optimizer)
    found["error"] = str(error.value)
    return found


def test_all_go_on_from_the_file_that_the_first_one_finds_whole(tmp_path):
    first, second = on_processes(2, on_two, tmp_path)
    for found in (first, second):
        assert found["names"] == ["step-000002.safetensors", "step-000003.safetensors"]
        assert found["progress"] == {"step": 2}
        assert found["same"] and found["goes on"]
    assert (first["told"], second["told"]) == (1, 0)
    assert "is whole: " in first["error"] and "step-000003" in first["error"]
    assert "the first process found no whole checkpoint" in second["error"]
