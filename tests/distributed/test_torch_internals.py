"""What rankwise takes from inside of torch; each message says what breaks if torch changes it."""

import torch
from torch import nn
from torch.autograd import Variable
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.adamw import adamw
from torch.utils.checkpoint import checkpoint

from processes import on_processes
from rankwise.distributed.sharded import is_sharded, sharded_like, whole
from rankwise.nn.base import is_transposed, own_class


def in_ddp(rank):
    """What DDP does with a parameter that it is told to ignore, and what it shows of itself."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.ones_(net[0].weight)
    nn.init.constant_(net[1].weight, rank + 1.0)
    DDP._set_params_and_buffers_to_ignore_for_model(net, ["1.weight"])
    seen = []

    def watch(parent, name, child):
        if isinstance(parent, DDP):
            seen.append((name, child is net, hasattr(parent, "module")))

    hook = register_module_module_registration_hook(watch)
    ddp = DDP(net)
    hook.remove()
    sync = [ddp.require_backward_grad_sync]
    with ddp.no_sync():
        sync.append(ddp.require_backward_grad_sync)
    ddp(torch.full((1, 2), float(rank + 1))).sum().backward()
    return {
        "ignored": list(net._ddp_params_and_buffers_to_ignore),
        "started": net[1].weight.item(),
        "reduced": net[0].weight.grad[0, 0].item(),
        "left": net[1].weight.grad.item(),
        "seen": seen,
        "sync": sync,
        "join": ddp._join_config.enable,
        **in_fsdp2(rank),
    }


class Conv1D(nn.Module):
    """As that of transformers, a weight of (in, out)."""

    def __init__(self):
        super().__init__()
        self.nx, self.nf = 3, 2
        self.weight = nn.Parameter(torch.ones(3, 2))


def in_fsdp2(rank):
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    kept, weight = net[1].weight, net[0].weight.detach().clone()
    inside = []
    fully_shard(net[1], ignored_params={kept})
    fully_shard(net, ignored_params={kept})
    net[0].register_forward_hook(lambda module, *_: inside.append(type(module.weight)))
    net(torch.ones(2, 3).double()).sum().backward()
    sharded = net[0].weight
    back = sharded_like(weight, sharded)
    try:
        _many_at_once([kept, sharded])
        mixed = ""
    except RuntimeError as error:
        mixed = str(error)
    for one in (kept, sharded):
        _many_at_once([one])
    return {
        "mixed": mixed,
        "sharded": [is_sharded(t) for t in (sharded, sharded.grad, back, kept, kept.grad, weight)],
        "type": type(sharded.data) is type(sharded) and type(sharded) is not nn.Parameter,
        "part": torch.equal(back.to_local(), sharded.to_local()),
        "whole": torch.equal(whole(sharded), weight) and whole(kept) is kept,
        "inside": inside,
        "kept": net[1].weight is kept,
        "class": [type(net[1]).__name__, type(net[1]).__mro__[1] is FSDPModule],
        "own": own_class(net[1]) is nn.Linear and own_class(nn.Linear) is type,
        "transposed": is_transposed(fully_shard(Conv1D())),
    }


def _many_at_once(parameters):
    """AdamW as torch computes it on a GPU; nothing changes at a rate of 0."""
    with torch.no_grad():
        adamw(
            parameters,
            [p.grad for p in parameters],
            *([torch.zeros_like(p) for p in parameters] for _ in range(2)),
            [],
            [torch.tensor(0.0) for _ in parameters],
            foreach=True, amsgrad=False, beta1=0.9, beta2=0.99, lr=0.0, weight_decay=0.0, eps=1e-8,
            maximize=False,
        )  # fmt: skip


def test_ddp_and_fsdp2():
    for rank, found in enumerate(on_processes(2, in_ddp)):
        assert found["ignored"] == ["1.weight"] and found["started"] == rank + 1.0, (
            "DDP._set_params_and_buffers_to_ignore_for_model or the attribute it sets, "
            "_ddp_params_and_buffers_to_ignore, has changed: DDP would broadcast and bucket "
            "factors, and `Replicas.wrapped_in` not see it"
        )
        # Gradients (1, 2) of the first weight are (1 * 1, 2 * 2); the second one's is its own.
        assert found["reduced"] == 2.5 and found["left"] == 2.0 * (rank + 1), (
            "DDP reduces what it is told to ignore: factors that change their rank break it"
        )
        assert found["seen"] == [("module", True, False)], (
            "DDP no longer registers `module` once, through register_module_module_registration_"
            "hook: `rankwise.nn.guard` would not see DDP around an unprepared model, and "
            "`Replicas` not know its wrapper"
        )
        assert found["sync"] == [True, False], (
            "DDP.require_backward_grad_sync is gone: under `ddp.no_sync()` factors would be sent "
            "with every backward pass"
        )
        assert found["join"] is False, (
            "DDP._join_config.enable is gone: factors would hang in `ddp.join()` without a word"
        )
        assert found["sharded"] == [True, True, True, False, False, False] and found["type"], (
            "a DTensor is no longer known by `full_tensor` and `placements`: "
            "`rankwise.distributed.sharded` would take sharded tensors for whole ones"
        )
        assert found["part"] and found["whole"], (
            "distribute_tensor(src_data_rank=None) or full_tensor no longer are inverse: files "
            "would be read into the wrong parts"
        )
        assert found["inside"] == [nn.Parameter], (
            "weights are no plain parameters inside of FSDP2's forward pass: low-rank layers would "
            "not take the fused product"
        )
        assert "mixed torch.Tensor and DTensor" in found["mixed"], (
            "AdamW on many tensors at once takes whole and sharded ones together: "
            "`rankwise.optim.dense` need not split them"
        )
        assert found["kept"], "FSDP2 replaces a parameter of `ignored_params`: factors must stay"
        assert found["class"] == ["FSDPLinear", True] and found["own"] and found["transposed"], (
            "FSDP2 names or places its class otherwise: `rankwise.nn.base.own_class` would not "
            "find what a base is"
        )


def graph_tasks(reentrant):
    """When hooks and callbacks run in a backward pass of two checkpointed segments."""
    first, second = (nn.Linear(1, 1, bias=False) for _ in range(2))
    told = []

    def arm(parameter):
        told.append(("hook", torch._C._current_graph_task_id()))
        engine = Variable._execution_engine
        engine.queue_callback(lambda: told.append(("end", first.weight.grad is not None)))

    second.weight.register_post_accumulate_grad_hook(arm)
    x = torch.ones(1, 1, requires_grad=True)
    for layer in (first, second):
        x = checkpoint(layer, x, use_reentrant=reentrant)
    x.sum().backward()
    return told


def test_a_callback_runs_at_the_end_of_its_backward_pass():
    why = (
        "Variable._execution_engine.queue_callback no longer calls back at the end of a backward "
        "pass: factor gradients would be sent too early, or never"
    )
    # Of a reentrant checkpoint the inner pass, of one segment, ends before the first layer's.
    for reentrant, complete in ((False, True), (True, False)):
        (_, number), *rest = graph_tasks(reentrant)
        assert rest == [("end", complete)], why
        assert number >= 0, "torch._C._current_graph_task_id gives no number: see below"


def test_each_backward_pass_has_a_number_of_its_own():
    numbers = [graph_tasks(False)[0][1] for _ in range(3)]
    assert len(set(numbers)) == 3 and min(numbers) >= 0, (
        "torch._C._current_graph_task_id no longer tells backward passes apart: `Replicas` would "
        "send factor gradients of the first one only, or once for every factor"
    )
    assert torch._C._current_graph_task_id() == -1


def test_set_data_of_another_type_drops_the_accumulator_and_keeps_hooks():
    p = nn.Parameter(torch.ones(2))
    calls = []
    p.register_post_accumulate_grad_hook(lambda q: calls.append(tuple(q.grad.shape)))
    older = (p * 1.0).sum()
    p.data = torch.empty(0, dtype=torch.float64)
    p.data = torch.ones(3)
    (p * 2.0).sum().backward()
    assert torch.equal(p.grad, torch.full((3,), 2.0)) and calls == [(3,)], (
        "set_data no longer drops the gradient accumulator on a change of dtype, or drops hooks "
        "with it: `rankwise.nn.resize.set_factor_` could not change the rank of a live layer, and "
        "`Replicas` would miss gradients after it"
    )
    del older
