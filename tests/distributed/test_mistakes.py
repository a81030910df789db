"""What goes wrong on several processes: an error at once, or the right numbers."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import rankwise as rw
from processes import on_processes
from rankwise.distributed.anchor import NAME
from scenes import distance, gradients, same, weights


class Branches(nn.Module):
    """Two adapted layers, each of which may be left out, and a head."""

    def __init__(self, *, head: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.double()
        rw.adapt_(self, rank=2, select=["a", "b"])
        self.head.requires_grad_(head)

    def forward(self, x, used="ab"):
        x = self.a(x).tanh() if "a" in used else x
        return self.head(self.norm(self.b(x) if "b" in used else x))


def batch(step: int):
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(12, 6, generator=draw, dtype=torch.float64)
    return x, x[:, :2].sin()


def half(rank, step):
    return (t.chunk(2)[rank] for t in batch(step))


def loss_of(model, x, y, used="ab"):
    return (model(x, used) - y).square().mean()


def replicated(*, head: bool = True, **options):
    model = Branches(head=head)
    replicas = rw.distributed.prepare(model)
    wrapped = DistributedDataParallel(model, **options)
    return model, wrapped, rw.Optimizer(model, lr=0.05), replicas


UNUSED = [("ab", "a"), ("ab", ""), ("b", "a")]


def unused(rank):
    found = []
    for uses in UNUSED:
        model, wrapped, optimizer, _ = replicated(find_unused_parameters=True)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(wrapped, *half(rank, step), uses[rank]).backward()
            found.append(gradients(model))
            optimizer.step()
    return found


# Of DDP, when it has looked for unused parameters in vain.
@pytest.mark.filterwarnings("ignore:find_unused_parameters=True")
def test_layers_that_a_process_does_not_use_even_all_of_them():
    found = iter(zip(*on_processes(2, unused), strict=True))
    for uses in UNUSED:
        alone = Branches()
        optimizer = rw.Optimizer(alone, lr=0.05)
        for step in range(3):
            optimizer.zero_grad()
            for rank in range(2):
                (loss_of(alone, *half(rank, step), uses[rank]) / 2).backward()
            # The same layers have none, too.
            assert all(distance(g, gradients(alone)) < 1e-10 for g in next(found))
            optimizer.step()


def overflow(rank):
    """Process 1 overflows in its third step."""
    found = []
    for head in (True, False):
        model, wrapped, optimizer, _ = replicated(head=head)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(5):
            loss = loss_of(wrapped, *half(rank, step))
            scaler.scale(loss * float("inf") if (rank, step) == (1, 2) else loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        found.append((optimizer.steps, scaler.get_scale(), weights(model)))
    return found


def test_an_overflow_on_one_process_is_a_skipped_step_and_a_smaller_scale_on_both():
    for outcomes in zip(*on_processes(2, overflow), strict=True):
        assert {outcome[:2] for outcome in outcomes} == {(4, 512.0)}
        assert same([weight for *_, weight in outcomes])


def failing(grad):
    raise RuntimeError("a failing backward")


def mishaps(rank):
    """Between steps: a failing backward pass, evaluations on one process."""
    model, wrapped, optimizer, replicas = replicated(head=False)
    for step in range(4):
        x, y = half(rank, step)
        # The gradients of the last layers are there when this one fails.
        hook = model.a.register_forward_hook(lambda *made: made[-1].register_hook(failing) and None)
        with pytest.raises(RuntimeError, match="a failing backward"):
            loss_of(wrapped, x, y).backward()
        hook.remove()
        optimizer.zero_grad()
        loss_of(wrapped, x, y).backward()
        optimizer.step()
        if rank == 0:
            model.eval()
            with torch.no_grad():
                loss_of(model, *batch(0))
            moved = batch(0)[0].requires_grad_()
            torch.autograd.grad(loss_of(model, moved, batch(0)[1]), moved)
            model.train()
    return weights(model), replicas.traffic.messages


def test_failed_backward_passes_and_an_evaluation_on_one_process_are_as_if_they_had_not_been():
    found = on_processes(2, mishaps)
    alone = Branches(head=False)
    optimizer = rw.Optimizer(alone, lr=0.05)
    for step in range(4):
        for rank in range(2):
            (loss_of(alone, *half(rank, step)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for end, messages in found:
        end.pop(NAME)
        assert distance(end, weights(alone)) < 1e-10 and messages == 4
    assert same([end for end, _ in found])


def refusals(rank):
    """`join` is known by torch's private `DistributedDataParallel._join_config`."""
    stack = nn.Sequential(Branches(), nn.Linear(2, 2).double())
    rw.distributed.prepare(stack[0])
    with pytest.raises(ValueError, match=r"a part of it.*'0.a.U'.*the module that is wrapped"):
        DistributedDataParallel(stack)
    stack = nn.Sequential(Branches(), nn.Linear(2, 2).double())
    rw.distributed.prepare(stack)
    with pytest.raises(ValueError, match="another module.*the module that is wrapped"):
        DistributedDataParallel(stack[0])
    with pytest.raises(ValueError, match="before the model is wrapped"):
        DistributedDataParallel(Branches())
    with pytest.raises(ValueError, match="FullyShardedDataParallel keeps parameters"):
        FullyShardedDataParallel(Branches(), device_id=torch.device("cpu"), use_orig_params=True)
    model, wrapped, optimizer, _ = replicated()
    with pytest.raises(ValueError, match="before the model is wrapped"):
        rw.distributed.prepare(wrapped)
    loss_of(wrapped, *half(rank, 0)).backward()
    with pytest.raises(ValueError, match="must not step the factors"):
        torch.optim.SGD(model.parameters()).step()
    optimizer.zero_grad()
    with wrapped.join(), pytest.raises(ValueError, match=r"`join\(\)`.*equally many batches"):
        loss_of(wrapped, *half(rank, 1)).backward()
    alone = Branches()
    optimizer = rw.Optimizer(alone)
    loss_of(alone, *half(rank, 0)).backward()
    with pytest.warns(UserWarning, match="2 processes run, and .* was not called"):
        optimizer.step()


def test_mistakes_are_named_where_they_are_made():
    on_processes(2, refusals)


def test_factors_on_several_devices_are_refused():
    model = Branches()
    model.b.to("meta")
    with pytest.raises(ValueError, match=r"several devices \(cpu, meta\)"):
        rw.distributed.prepare(model)


def test_the_anchor_has_the_type_that_a_model_takes_its_own_from():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)).bfloat16().requires_grad_(False)
    rw.adapt_(model, rank=2, select="1")
    rw.distributed.prepare(model)
    assert next(model.named_parameters())[0] == NAME
    assert next(model.parameters()).dtype == torch.bfloat16
    assert model[1].U.dtype == torch.float32


def other_rates(rank):
    """A schedule that follows the loss of its own process."""
    model = Branches(head=False)
    replicas = rw.distributed.prepare(model)
    rule = rw.Tolerance(rtol=0.2, every=3, grow=2)
    optimizer = rw.Optimizer(model, lr=0.05, rank_rule=rule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6):
            optimizer.param_groups[0]["lr"] = 0.005 if rank == 1 and step > 1 else 0.05
            optimizer.zero_grad()
            loss_of(model, *half(rank, step)).backward()
            optimizer.step()
    said = any("had drifted apart" in str(warning.message) for warning in caught)
    return [layer.ranks for _, layer in optimizer.layers], replicas.realigned > 0, said


def test_ranks_grow_alike_where_rates_differ():
    first, second = on_processes(2, other_rates)
    assert first == second
    assert first[1:] == (True, True)


def unlike(rank):
    model = Branches(head=False)
    rw.distributed.prepare(model)
    optimizer = rw.Optimizer(model, lr=0.05)
    if rank == 0:
        saved = optimizer.state_dict()
        saved["rankwise"]["steps"] = 3
        optimizer.load_state_dict(saved)
    loss_of(model, *half(rank, 0)).backward()
    with pytest.raises(ValueError, match=f"process {rank} has taken {3 - 3 * rank} steps"):
        optimizer.step()


def test_a_state_that_one_process_has_loaded_is_found_on_both():
    on_processes(2, unlike)


def held_back(rank):
    model, wrapped, optimizer, replicas = replicated()
    for hold in (wrapped.no_sync, replicas.no_sync):
        loss = loss_of(wrapped, *half(rank, 0))
        # DDP syncs here all the same, by where the forward pass was.
        with hold():
            loss.backward()
        with pytest.raises(ValueError, match="within `no_sync"):
            optimizer.step()
        optimizer.zero_grad()
        loss_of(wrapped, *half(rank, 0)).backward()
        optimizer.step()
    return weights(model)


def test_a_step_with_gradients_that_were_not_sent_is_refused():
    assert same(on_processes(2, held_back))


def prepared_early(rank):
    default = dist.distributed_c10d._get_default_group()
    dist.distributed_c10d._update_default_pg(None)
    model = Branches(head=False)
    rw.distributed.prepare(model)
    dist.distributed_c10d._update_default_pg(default)
    with pytest.raises(ValueError, match="no process group yet"):
        loss_of(model, *half(rank, 0)).backward()
    model.zero_grad()
    wrapped = DistributedDataParallel(model)
    loss_of(wrapped, *half(rank, 0)).backward()
    return gradients(model)


def test_a_model_prepared_before_the_group_and_not_wrapped_is_refused():
    assert same(on_processes(2, prepared_early))


def without_svd(rank: int) -> tuple[int, int]:
    model, wrapped, _, _ = replicated()
    optimizer = rw.Optimizer(model, lr=0.05, guard=rw.check.Guard(rewinds=3))

    def fails(*_, **__):
        raise torch.linalg.LinAlgError("no")

    loss_of(wrapped, *half(rank, 0)).backward()
    torch.linalg.svd = torch.linalg.eigh = fails
    with pytest.raises(FloatingPointError, match="do not converge"):
        optimizer.step()
    return optimizer.skipped, optimizer.incidents.rewound


def test_an_svd_that_fails_ends_the_process_and_does_not_leave_the_others_waiting():
    assert list(on_processes(2, without_svd)) == [(0, 0), (0, 0)]


def spoilt_on_one(rank: int, rewinds: int) -> tuple:
    """After the third gradient process 1 alone holds something that is not finite."""
    model, wrapped, _, _ = replicated()
    guard = rw.check.Guard(every=1, rewinds=rewinds)
    optimizer, kept, end = rw.Optimizer(model, lr=0.05, guard=guard), [], ""
    for step in range(4):
        optimizer.zero_grad()
        loss_of(wrapped, *half(rank, step)).backward()
        if (rank, step) == (1, 2):
            model.head.weight.data[0, 0] = float("inf")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                optimizer.step()
        except FloatingPointError as error:
            end = str(error)
            break
        kept.append(weights(model))
        end = end or "".join(str(w.message) for w in told)
    return end, optimizer.steps, optimizer.incidents.rewound, kept


@pytest.mark.parametrize("rewinds", [0, 1])
def test_what_is_not_finite_on_one_process_takes_all_of_them_back(rewinds):
    first, second = on_processes(2, spoilt_on_one, rewinds)
    assert first[:3] == second[:3]
    end, steps, rewound, kept = first
    assert "'head.weight' is not finite" in end
    assert (steps, rewound) == ((3, 0) if rewinds == 0 else (4, 1))
    assert all(same(list(pair)) for pair in zip(first[3], second[3], strict=True))
    if rewinds:
        # The third step led back to the weights of the second.
        assert distance(kept[1], kept[2]) == 0.0 and distance(kept[2], kept[3]) > 0
