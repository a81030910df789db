"""What `prepare` leaves on a model: what it keeps of the user's, and what goes with the model."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rankwise as rw
from processes import on_processes
from scenes import RULE, batch, distance, loss_of, network, part, weights


def steps(model, run, *, rank=0, world=1, count=3):
    optimizer = rw.Optimizer(model, lr=0.05, rank_rule=RULE)
    for step in range(count):
        x, y = batch(step, 8)
        optimizer.zero_grad()
        loss_of(run, part(rank, world, x), part(rank, world, y)).backward()
        optimizer.step()


def deleted(rank):
    model = network()
    replicas = rw.distributed.prepare(model)
    steps(model, DistributedDataParallel(model))
    last = [weakref.ref(thing) for thing in (model, replicas, model[2][0], model[2][0].base)]
    del model, replicas
    gc.collect()
    return [one() is None for one in last]


def test_a_prepared_model_goes_when_nobody_holds_it():
    assert on_processes(1, deleted) == [[True] * 4]


def heads(rank):
    """The head begins to train after the first `prepare`, with another one or without; and back."""
    ends = []
    for again in (True, False):
        model = network(head=False)
        rw.distributed.prepare(model)
        model[3].requires_grad_(True)
        if again:
            rw.distributed.prepare(model)
        steps(model, DistributedDataParallel(model), rank=rank, world=2)
        ends.append(weights(model))
    model[3].requires_grad_(False)
    rw.distributed.prepare(model)
    steps(model, DistributedDataParallel(model), rank=rank, world=2)
    return ends


def test_ddp_does_not_wait_for_the_anchor_once_a_head_trains():
    alone = network(head=False)
    alone[3].requires_grad_(True)
    steps(alone, alone)
    for ends in on_processes(2, heads):
        for end in ends:
            assert distance(end, weights(alone)) < 1e-10


def test_what_ddp_was_told_to_ignore_stays_ignored():
    model = network()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["3.bias"])
    rw.distributed.prepare(model)
    ignored = model._ddp_params_and_buffers_to_ignore
    assert "3.bias" in ignored and "2.0.U" in ignored


def shared() -> nn.Module:
    """Two layers with the same factors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 2)).double()
    rw.factorize_(model, rank=2, select=["0", "2"])
    for name in "USV":
        setattr(model[2], name, getattr(model[0], name))
    return model


def train_shared(model, run, rank=0, world=1):
    optimizer = rw.Optimizer(model, lr=0.05, rank_rule=RULE)
    for step in range(4):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        run(part(rank, world, x)).square().mean().backward()
        optimizer.step()
    return weights(model)


def sharing(rank):
    model = shared()
    replicas = rw.distributed.prepare(model)
    assert model[2].replicas is replicas
    end = train_shared(model, DistributedDataParallel(model), rank, 2)
    replicas.release()
    assert model[0].replicas is None and model[2].replicas is None
    return end


def test_layers_that_share_their_factors():
    model = shared()
    expected = train_shared(model, model)
    assert all(distance(end, expected) < 1e-10 for end in on_processes(2, sharing))


def groups(rank):
    first = dist.new_group([0])
    model = network()
    if rank == 1:
        with pytest.raises(ValueError, match="this process is not in `group`"):
            rw.distributed.prepare(model, group=first)
        return
    rw.distributed.prepare(model, group=first)
    # The process of the group alone gets this far, and must not wait for others.
    with pytest.raises(ValueError, match=r"over the processes \[0, 1\], .* over \[0\]"):
        DistributedDataParallel(model, init_sync=False)


def test_groups_without_this_process_and_other_than_ddps_are_refused():
    on_processes(2, groups)


def again(rank):
    """`prepare` once more under a wrapper that is already there."""
    model = network()
    rw.distributed.prepare(model)
    wrapped = DistributedDataParallel(model)
    replicas = rw.distributed.prepare(model)
    with wrapped.no_sync(), replicas.no_sync():
        with replicas.no_sync():
            loss_of(wrapped, *batch(0, 8)).backward()
        loss_of(wrapped, *batch(1, 8)).backward()
    with wrapped.no_sync():
        loss_of(wrapped, *batch(1, 8)).backward()
    return replicas.in_ddp, replicas.traffic.messages


def test_prepared_again_it_knows_its_wrapper_and_no_sync_nests():
    assert on_processes(2, again) == [(True, 0)] * 2
