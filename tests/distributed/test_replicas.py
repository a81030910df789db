"""Factors of changing ranks under DDP: equal everywhere, and the gradient of the whole batch."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rankwise as rw
from processes import on_processes
from scenes import RULE, batch, distance, gradients, loss_of, network, part, same, weights

DDP_OPTIONS = (
    {},
    {"gradient_as_bucket_view": True},
    {"find_unused_parameters": True},
    {"static_graph": True},
)
ROWS = 8
STEPS = 7


def trained(model, run, *, rank=0, world=1, steps=STEPS, start=0, optimizer=None):
    """Train on this process's part of each batch; gradients before each step, and the ranks."""
    optimizer = optimizer or rw.Optimizer(model, lr=0.05, rank_rule=RULE)
    seen, ranks = [], []
    for step in range(start, start + steps):
        x, y = batch(step, ROWS * 4)
        optimizer.zero_grad()
        loss_of(run, part(rank, world, x), part(rank, world, y)).backward()
        seen.append(gradients(model))
        optimizer.step()
        ranks.append([layer.ranks for _, layer in optimizer.layers])
    return seen, ranks


def many_options(rank, world, head):
    results = []
    for options in DDP_OPTIONS:
        model = network(head=head)
        replicas = rw.distributed.prepare(model)
        run = DistributedDataParallel(model, **options)
        seen, ranks = trained(model, run, rank=rank, world=world)
        results.append((seen, ranks, weights(model), replicas.traffic, replicas.realigned))
    return results


@pytest.mark.parametrize("world, head", [(2, True), (4, True), (2, False)])
def test_ddp_with_changing_ranks_is_the_whole_batch_in_one_process(world, head):
    alone = network(head=head)
    expected, path = trained(alone, alone)
    end = weights(alone)
    assert len({str(ranks) for ranks in path}) > 2
    for outcomes in zip(*on_processes(world, many_options, world, head), strict=True):
        for seen, ranks, weight, _, realigned in outcomes:
            assert ranks == path and realigned == 0
            weight.pop("ddp_anchor", None)
            assert max(map(distance, seen, expected)) < 1e-10
            assert distance(weight, end) < 1e-10
        assert same([outcome[2] for outcome in outcomes])


def test_one_message_a_step_of_all_coordinates_of_the_tangent_gradient():
    model = network()

    def scene(rank):
        replicas = rw.distributed.prepare(model)
        trained(model, DistributedDataParallel(model), rank=rank, world=2, steps=1)
        return replicas.traffic

    (traffic, _) = on_processes(2, scene)
    factors = [
        p
        for layer in (model[0][0], model[1][0], model[2][0], model[2][2])
        for p in layer.factor_parameters()
    ]
    numbers = sum(p.numel() for p in factors) + len(factors)
    assert traffic == (1, 8 * numbers, 8 * numbers)


def accumulated(rank):
    model = network()
    replicas = rw.distributed.prepare(model)
    run = DistributedDataParallel(model)
    optimizer = rw.Optimizer(model, lr=0.05, rank_rule=RULE)
    sent, seen, losses = [], [], []
    for step in range(4):
        for micro in range(3):
            x, y = batch(3 * step + micro, ROWS)
            x, y = part(rank, 2, x), part(rank, 2, y)
            # Held back by DDP, by rankwise, and averaged each time: averages of averages.
            holders = (run.no_sync, replicas.no_sync, None)
            if step < 3 and micro < 2 and (hold := holders[step]) is not None:
                with run.no_sync(), hold():
                    losses.append(loss_of(run, x, y) / 3)
                    losses[-1].backward()
            else:
                losses.append(loss_of(run, x, y) / 3)  # Earlier losses stay alive.
                losses[-1].backward()
        sent.append(replicas.traffic.messages)
        seen.append(gradients(model))
        optimizer.step()
        optimizer.zero_grad()
    return sent, seen, weights(model)


def test_accumulation_sends_once_a_step_where_ddp_does():
    model = network()
    optimizer = rw.Optimizer(model, lr=0.05, rank_rule=RULE)
    (sent, seen, weight), other = on_processes(2, accumulated)
    assert sent == [1, 2, 5, 8]
    for step in range(4):
        for micro in range(3):
            (loss_of(model, *batch(3 * step + micro, ROWS)) / 3).backward()
        assert distance(seen[step], gradients(model)) < 1e-10
        optimizer.step()
        optimizer.zero_grad()
    assert distance(weight, weights(model)) < 1e-10
    assert same([weight, other[2]])


def own_opinions(rank):
    model = network()
    rw.distributed.prepare(model)
    rule = rw.Tolerance(rtol=0.05 if rank == 0 else 0.5, every=3, grow=2)
    optimizer = rw.Optimizer(model, lr=0.05, rank_rule=rule)
    run = DistributedDataParallel(model)
    _, ranks = trained(model, run, rank=rank, world=2, optimizer=optimizer)
    return ranks, weights(model)


def test_ranks_are_those_that_the_first_process_chose():
    (first, weight), (second, other) = on_processes(2, own_opinions)
    assert first == second and same([weight, other])
    alone = network()
    rule = rw.Tolerance(rtol=0.05, every=3, grow=2)
    _, ranks = trained(alone, alone, optimizer=rw.Optimizer(alone, lr=0.05, rank_rule=rule))
    assert first == ranks


def unequal_starts(rank):
    model = network(seed=rank)
    if rank == 1:
        f = model[2][0].factors()
        model[2][0].set_factors_(type(f)(f.U[:, :1], f.S[:1, :1], f.V[:, :1]))
    replicas = rw.distributed.prepare(model)
    run = DistributedDataParallel(model)
    trained(model, run, rank=rank, world=2, steps=4)
    return weights(model), replicas.realigned


def test_processes_that_start_apart_start_from_the_first():
    (first, realigned), (second, _) = on_processes(2, unequal_starts)
    assert same([first, second]) and realigned == 0


def other_layers(rank):
    model = network()
    if rank == 1:
        rw.factorize_(model, rank=2, select=["3"])
    with pytest.raises(ValueError, match="other low-rank layers.*'3'"):
        rw.distributed.prepare(model)


def test_other_layers_on_one_process_are_refused_on_both():
    on_processes(2, other_layers)


def mishaps(rank):
    """One after the other: a NaN on one process, a failed backward, drift, unused layers."""
    model = network()
    replicas = rw.distributed.prepare(model)
    run = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = rw.Optimizer(model, lr=0.05, rank_rule=RULE)
    found = {}

    before = weights(model)
    x, y = batch(0, ROWS)
    loss_of(
        run, part(rank, 2, x) * (float("nan") if rank == 1 else 1.0), part(rank, 2, y)
    ).backward()
    optimizer.step()
    found["skipped"] = optimizer.skipped == 1 and same([before, weights(model)])

    optimizer.zero_grad()
    x, y = batch(1, ROWS)
    out = model(part(rank, 2, x))
    out.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
    optimizer.zero_grad()
    trained(model, run, rank=rank, world=2, steps=3, optimizer=optimizer)
    found["after a failure"] = weights(model)

    momentum = optimizer.state[model[2][0].U]["momentum"]
    if rank == 1:
        momentum[0][0, 0] += 1e-12
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(model, run, rank=rank, world=2, steps=6, start=3, optimizer=optimizer)
    found["warnings"] = [str(w.message) for w in caught]
    found["realigned"] = replicas.realigned
    found["after drift"] = weights(model)
    found["momentum"] = {"K": optimizer.state[model[2][0].U]["momentum"][0].clone()}

    optimizer.zero_grad()
    x, y = batch(2, ROWS)
    x, y = part(rank, 2, x), part(rank, 2, y)
    hidden = model[1](model[0](x))
    # Process 1 goes around a layer, both around another.
    hidden = model[2][0](hidden) if rank == 0 else hidden[:, :12]
    (hidden.mean() - y.mean()).square().backward()
    found["unused here"] = gradients(model)
    found["unused everywhere"] = model[2][2].U.grad is None
    optimizer.step()
    found["after unused"] = weights(model[2])
    return found


def test_mishaps_on_one_process_are_met_by_all():
    first, second = on_processes(2, mishaps)
    assert first["skipped"] and second["skipped"]
    for moment in ("after a failure", "after drift", "momentum", "unused here", "after unused"):
        if moment == "unused here":  # Those of low-rank layers; there was no DDP.
            for found in (first, second):
                found[moment] = {k: v for k, v in found[moment].items() if k[-1] in "USVe"}
        assert same([first[moment], second[moment]]), moment
    assert any(name.startswith("2.0.") for name in second["unused here"])
    assert first["unused everywhere"] and second["unused everywhere"]
    assert first["realigned"] == second["realigned"] == 1
    assert sum("had drifted apart" in text for text in second["warnings"]) == 1


def in_bfloat16(rank):
    found = []
    for dtype in (None, torch.bfloat16):
        model = network(dtype=torch.float32)
        replicas = rw.distributed.prepare(model, dtype=dtype)
        run = DistributedDataParallel(model)
        x, y = batch(0, ROWS, torch.float32)
        loss_of(run, part(rank, 2, x), part(rank, 2, y)).backward()
        seen = gradients(model)
        trained_in = rw.Optimizer(model, lr=0.05, rank_rule=RULE)
        trained_in.step()
        found.append((seen, replicas.traffic.last, weights(model)))
    return found


def test_gradients_may_travel_in_bfloat16():
    first, second = on_processes(2, in_bfloat16)
    (exact, full, _), (rounded, half, weight) = first
    assert half * 2 == full
    for name, g in exact.items():
        error = torch.linalg.vector_norm(rounded[name] - g) / torch.linalg.vector_norm(g)
        assert error < 2**-7, name
    factors = {n: t for n, t in rounded.items() if not torch.equal(t, exact[n])}
    assert factors and all(n.split(".")[-1] in ("U", "S", "V", "core") for n in factors)
    assert same([weight, second[1][2]])


def two_teams(rank):
    teams = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = network(seed=rank)
    replicas = rw.distributed.prepare(model, group=teams[rank // 2])
    run = DistributedDataParallel(model, process_group=teams[rank // 2])
    trained(model, run, rank=rank % 2, world=2, steps=3)
    return weights(model), replicas.processes, replicas.is_first


def test_groups_of_processes_train_apart():
    found = on_processes(4, two_teams)
    assert [count for _, count, _ in found] == [2] * 4
    assert [writes for *_, writes in found] == [True, False, True, False]
    assert same([found[0][0], found[1][0]]) and same([found[2][0], found[3][0]])
    assert not torch.equal(found[0][0]["3.weight"], found[2][0]["3.weight"])


def test_without_a_process_group_nothing_changes():
    plain, prepared = network(), network()
    replicas = rw.distributed.prepare(prepared)
    for model in (plain, prepared):
        trained(model, model)
    assert same([weights(plain), weights(prepared)])
    assert (replicas.processes, replicas.is_first, replicas.traffic) == (1, True, (0, 0, 0))


def test_preparing_again_and_release():
    model = network()
    first = rw.distributed.prepare(model)
    second = rw.distributed.prepare(model)
    assert second is not first and model[2][0].replicas is second
    assert all(len(p._post_accumulate_grad_hooks) == 1 for p in second.factors)
    second.release()
    assert model[2][0].replicas is None
    assert not any(p._post_accumulate_grad_hooks for p in second.factors)


def test_a_copy_is_its_own_and_has_to_be_prepared():
    model = network(head=False)
    rw.distributed.prepare(model)
    other = copy.deepcopy(model)
    assert other[2][0].replicas is None and model[2][0].replicas is not None
    trained(other, other)
    assert not torch.equal(other[2][0].U, model[2][0].U)


def wrapping(rank):
    with pytest.raises(ValueError, match=r"`rankwise.distributed.prepare\(model\)` before"):
        DistributedDataParallel(network())
    model = network()
    rw.distributed.prepare(model[2])
    with pytest.raises(ValueError, match="before the model is wrapped"):
        DistributedDataParallel(model)
    model = network()
    rw.distributed.prepare(model)
    outer = nn.ModuleDict({"inner": model})
    with pytest.raises(ValueError, match="with the module that is wrapped"):
        DistributedDataParallel(outer)
    with pytest.raises(ValueError, match="before the model is wrapped in DDP"):
        rw.distributed.prepare(DistributedDataParallel(model))
    copied = copy.deepcopy(model)
    with pytest.raises(ValueError, match="prepare"):
        DistributedDataParallel(copied)


def test_ddp_takes_only_prepared_models():
    on_processes(1, wrapping)


def test_the_anchor_is_in_no_file_and_no_group(tmp_path):
    model = network(head=False)
    rw.distributed.prepare(model)
    assert "ddp_anchor" in dict(model.named_parameters())
    optimizer = rw.Optimizer(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.ddp_anchor) not in held
    assert not any("anchor" in key for key in model.state_dict())
    assert not any("anchor" in key for key in nn.ModuleDict({"a": model}).state_dict())
    assert network(head=False).load_state_dict(model.state_dict()).missing_keys == []
    assert model.load_state_dict(network(head=False).state_dict()).missing_keys == []
    rw.save(model, tmp_path)
    rw.load(network(head=False), tmp_path)
    rw.load(model, tmp_path)


def test_what_cannot_be_prepared():
    with pytest.raises(ValueError, match="no low-rank layer that trains"):
        rw.distributed.prepare(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        rw.distributed.prepare(3)
    with pytest.raises(TypeError, match="torch.bfloat16"):
        rw.distributed.prepare(network(), dtype="bfloat16")
    with pytest.raises(TypeError, match="torch.bfloat16"):
        rw.distributed.prepare(network(), dtype=torch.int8)
    model = network()
    model[2][0].float()
    with pytest.raises(ValueError, match="several types"):
        rw.distributed.prepare(model)


def test_layers_made_after_prepare_are_found():
    model = network()
    rw.distributed.prepare(model)
    rw.factorize_(model, rank=2, select=["3"])
    optimizer = rw.Optimizer(model, lr=0.05)
    loss_of(model, *batch(0, 8)).backward()
    with pytest.raises(ValueError, match="'3' was made after"):
        optimizer.step()


def integrators(rank):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3)).double()
    rw.factorize_(model, rank=2)
    rw.distributed.prepare(model)
    optimizer = rw.Optimizer(
        model, lr=0.05, rule=rw.SGD(), integrator=rw.integrators.AugmentedBUG()
    )
    loss_of(model, *batch(0, 8)).backward()
    with pytest.raises(ValueError, match="AugmentedBUG.*ParallelBUG"):
        optimizer.step()


def test_integrators_that_look_at_inputs_are_refused_on_several_processes():
    on_processes(2, integrators)
