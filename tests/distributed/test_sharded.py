"""FSDP2: frozen bases and dense parameters sharded, factors of changing ranks whole everywhere."""

from math import prod

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim.lr_scheduler import LinearLR

import rankwise as rw
from processes import on_processes
from rankwise.distributed.sharded import (
    all_finite,
    all_usable,
    is_sharded,
    sharded_like,
    total_norm,
    whole,
)
from rankwise.nn.base import own_class
from rankwise.optim.step_control import weight_norm
from scenes import RULE, part
from sharded import batch, gradient_error, loss_of, network, shard_, weight_error


def parts(net, given):
    optimizer = rw.Optimizer(net, rank_rule=RULE, **given)
    return optimizer, LinearLR(optimizer, 1.0, 0.2, total_iters=14)


def training(rank, world, steps, mesh, given):
    """Steps beside those of a single process, which has the whole batch."""
    net, reference = network(), network()
    replicas = rw.distributed.prepare(net)
    # On a mesh of two dimensions what is sharded in one is repeated in the other.
    names = ("repeated", "sharded")[-len(mesh) :]
    shard_(net, replicas, mesh=init_device_mesh("cpu", mesh, mesh_dim_names=names))
    optimizer, schedule = parts(net, given)
    alone, its_schedule = parts(reference, given)
    norms = [
        abs(weight_norm(a) / weight_norm(b) - 1) for (_, a), (_, b) in _pairs(optimizer, alone)
    ]
    errors, clips, ranks = [], [], []
    for step in range(steps):
        net.checkpointing = (None, False, True)[step % 3]
        x, y = batch(step, 4 * world)
        halves = [t.tensor_split(2) for t in (part(rank, world, x), part(rank, world, y))]
        # The first half of each part is accumulated: sent at once, or with the second half.
        held = step % 2 == 1
        net.set_requires_gradient_sync(not held)
        if held:
            with replicas.no_sync():
                (loss_of(net, halves[0][0], halves[1][0]) / 2).backward()
        else:
            (loss_of(net, halves[0][0], halves[1][0]) / 2).backward()
        net.set_requires_gradient_sync(True)
        (loss_of(net, halves[0][1], halves[1][1]) / 2).backward()
        loss_of(reference, x, y).backward()
        errors.append(gradient_error(net, reference))
        norm, its_norm = optimizer.clip_gradient_(0.3), alone.clip_gradient_(0.3)
        clips.append(max(abs(float(norm / its_norm) - 1), gradient_error(net, reference)))
        for stepped in (optimizer, alone, schedule, its_schedule):
            stepped.step()
        optimizer.zero_grad()
        alone.zero_grad()
        ranks.append(tuple(layer.rank for _, layer in optimizer.layers))
    found = {
        "gradients": max(errors),
        "clipped": max(clips),
        "norms": max(norms),
        "weights": weight_error(net, reference),
        "ranks": ranks,
        "sharded": {name for name, p in net.named_parameters() if is_sharded(p)},
        "factors": [p.detach().clone() for p in replicas.factors],
        "realigned": replicas.realigned,
    }
    return (
        found | skipping(rank, net, optimizer) | mixed(rank, world) | again_and_again(rank, world)
    )


def _pairs(optimizer, alone):
    return zip(optimizer.layers, alone.layers, strict=True)


def skipping(rank, net, optimizer):
    """A NaN on one process only: in its part of a sharded gradient, and in a factor gradient."""
    before = [whole(p.detach()).clone() for p in net.parameters()]
    taken, skipped = optimizer.steps, []
    for place in ("sharded", "factor"):
        loss_of(net, *batch(20, 4)).backward()
        if place == "sharded":
            if rank == 1:
                net.head.weight.grad.to_local().view(-1)[0] = torch.nan
        else:
            optimizer.zero_grad()
            x, y = batch(21, 4)
            # The loss of one process is broken, and the sum over processes with it.
            (loss_of(net, x, y) * (torch.nan if rank == 0 else 1.0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        skipped.append(optimizer.skipped)
    same = all(
        torch.equal(a, whole(p.detach())) for a, p in zip(before, net.parameters(), strict=True)
    )
    return {"skipped": skipped, "taken": optimizer.steps - taken, "kept": same}


def again_and_again(rank, world):
    """An integrator that asks for the gradient at several points of a step."""
    net, reference = network(), network()
    shard_(net, rw.distributed.prepare(net))
    for model, size in ((net, world), (reference, 1)):
        optimizer = rw.Optimizer(
            model, rule=rw.SGD(), integrator=rw.integrators.ProjectorSplitting(), rank_rule=RULE
        )

        def closure(step, model=model, size=size):
            whole_batch = batch(step, 2 * world)
            loss = loss_of(model, *(part(rank % size, size, t) for t in whole_batch))
            loss.backward()
            return loss

        for step in range(3):
            optimizer.step(lambda step=step: closure(step))
    return {"several points": weight_error(net, reference)}


def mixed(rank, world):
    """Ordinary and sharded tensors in one list, and a part that is empty here."""
    mesh = init_device_mesh("cpu", (world,))
    values = [torch.arange(3.0), torch.ones(world - 1, 2), torch.full((2,), 3.0)]
    like = nn.Linear(2, world - 1, bias=False)
    fully_shard(like, mesh=mesh)
    tensors = [values[0], sharded_like(values[1], like.weight), values[2]]
    norm = float(total_norm(tensors)) / float(torch.cat([v.flatten() for v in values]).norm()) - 1
    finite = [all_finite(tensors) and all_usable(tensors)]
    if rank == 0:
        tensors[1].to_local()[0, 0] = torch.inf
    finite.append(all_finite(tensors) or all_usable(tensors))
    return {"norm": abs(norm), "finite": finite, "empty": tensors[1].to_local().numel()}


# The reference trains alone, on purpose.
@pytest.mark.filterwarnings(r"ignore:\d processes run, and")
@pytest.mark.parametrize(
    ("steps", "mesh", "given"),
    [(12, (2,), {"lr": 0.05, "weight_decay": 0.01}), (7, (2, 2), {"control": rw.RateFree()})],
    ids=["2", "2 x 2, without a rate"],
)
def test_fsdp2_trains_as_a_single_process_does(steps, mesh, given):
    world = prod(mesh)
    found = on_processes(world, training, world, steps, mesh, given)
    for of in found:
        assert of["gradients"] < 1e-12 and of["clipped"] < 1e-12 and of["norms"] < 1e-14
        assert of["weights"] < 1e-12 and of["several points"] < 1e-12
        assert of["ranks"] == found[0]["ranks"] and len(set(of["ranks"])) > 2
        assert all(map(torch.equal, of["factors"], found[0]["factors"])) and of["realigned"] == 0
        assert {"head.weight", "blocks.0.norm.bias", "embedding.base.weight"} < of["sharded"]
        assert not any(name.endswith((".U", ".S", ".V")) for name in of["sharded"])
        assert of["skipped"] == [1, 2] and of["taken"] == 0 and of["kept"]
        assert of["norm"] < 1e-6 and of["finite"] == [True, False]
    assert found[-1]["empty"] == 0


def in_bfloat16(rank):
    """Sharded in float32, computed in bfloat16; gradients beside those in float32."""
    net, reference = network(torch.float32), network(torch.float32)
    replicas = rw.distributed.prepare(net, dtype=torch.bfloat16)
    shard_(net, replicas, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    optimizer = rw.Optimizer(net, lr=0.05, rank_rule=RULE)
    error, losses = 0.0, []
    for step in range(8):
        x, y = batch(step % 2, 8, torch.float32)
        loss = loss_of(net, part(rank, 2, x), part(rank, 2, y))
        loss.backward()
        if step == 0:
            loss_of(reference, x, y).backward()
            error = gradient_error(net, reference)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    factors = [p.detach().clone() for p in replicas.factors]
    return error, losses, factors, own_class(net.blocks[0].a.base)


def test_bases_in_bfloat16():
    (error, losses, factors, kind), other = on_processes(2, in_bfloat16)
    assert 1e-4 < error < 5e-2
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    assert all(p.dtype == torch.float32 for p in factors)
    assert all(map(torch.equal, factors, other[2]))
    assert kind is nn.Linear


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_an_entry_that_is_not_finite_is_found_in_tensors_of_any_kind(kind, value):
    sound = torch.ones(3, 4, dtype=kind)
    broken = sound.clone()
    broken[2, 1] = value
    # Entries that share memory cannot be written, and an empty tensor has none.
    others = [sound, sound[:1, :1].expand(2, 2), sound[:, :0], sound.T[::2]]
    for sound_everywhere in (all_finite, all_usable):
        assert sound_everywhere(others)
        assert not sound_everywhere([*others, broken])
        assert not sound_everywhere([broken[2:, 1:2].expand(2, 2)])


@pytest.mark.parametrize(
    "kind, size", [(torch.float32, 1e18), (torch.bfloat16, 1e18), (torch.float64, 1e153)]
)
def test_entries_whose_squares_would_overflow_are_no_better(kind, size):
    large = torch.full((4, 3), size, dtype=kind)
    assert not all_usable([torch.ones(2), large]) and all_finite([torch.ones(2), large])
    assert all_usable([torch.ones(2), 1e-3 * large])
    assert all_usable([torch.full((5,), 6e4, dtype=torch.float16)])
