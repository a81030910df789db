"""What is not supported beside DDP, and what the error says to do instead."""

import re

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import rankwise as rw
from processes import on_processes
from sharded import batch, loss_of, network, shard_


def step(net, optimizer):
    loss_of(net, *batch(0, 8)).backward()
    optimizer.step()


def forgot_ignored_params():
    net = network()
    rw.distributed.prepare(net)
    fully_shard(net)
    rw.Optimizer(net)


def forgot_ignored_params_after_the_optimizer():
    net = network()
    rw.distributed.prepare(net)
    optimizer = rw.Optimizer(net)
    fully_shard(net)
    step(net, optimizer)


def prepare_too_late():
    net = network()
    fully_shard(net)
    rw.distributed.prepare(net)


def optimizer_too_early():
    net = network()
    replicas = rw.distributed.prepare(net)
    optimizer = rw.Optimizer(net)
    shard_(net, replicas)
    step(net, optimizer)


def the_whole_is_not_sharded():
    net = network()
    replicas = rw.distributed.prepare(net)
    for block in net.blocks:
        fully_shard(block, ignored_params=set(replicas.factors))
    step(net, rw.Optimizer(net))


def not_wrapped():
    net = network()
    rw.distributed.prepare(net)
    step(net, rw.Optimizer(net))


def fsdp1():
    net = network()
    rw.distributed.prepare(net)
    FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params=True)


def flat_parameters():
    """DeepSpeed's engine cannot be seen: it registers its module by hand. What ZeRO does can be."""
    net = network()
    rw.distributed.prepare(net)
    optimizer = rw.Optimizer(net)
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(torch.cat([p.detach().view(-1) for p in group["params"]]))]
    step(net, optimizer)


def tensor_parallel():
    net = network()
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(net, mesh, {"blocks.0.a.base": ColwiseParallel()})
    rw.distributed.prepare(net)


SHARDED = r"the factors of layer 'embedding' are sharded.*prepare\(model\).*ignored_params="
REFUSALS = {
    forgot_ignored_params: SHARDED,
    forgot_ignored_params_after_the_optimizer: SHARDED,
    prepare_too_late: SHARDED,
    optimizer_too_early: r"has replaced them. Make the optimizer after `fully_shard`",
    the_whole_is_not_sharded: r"UserWarning: 'head.weight' trains.*`fully_shard` on the whole",
    not_wrapped: r"'blocks.0.norm.weight' trains.* DDP .*\(nor 5 more\).*DistributedDataParallel",
    fsdp1: r"FullyShardedDataParallel keeps .* of a fixed size.*FSDP2 \(`fully_shard`\)",
    flat_parameters: r"or DeepSpeed's ZeRO, has replaced them.*not supported",
    tensor_parallel: r"base of layer 'blocks.0.a' is tensor-parallel \('weight'.*FSDP2",
}


def said(rank):
    """What each of the scenes raises."""
    messages = {}
    for scene in REFUSALS:
        try:
            scene()
            messages[scene.__name__] = "nothing"
        except (ValueError, UserWarning) as error:
            messages[scene.__name__] = f"{type(error).__name__}: {error}"
    return messages


@pytest.fixture(scope="module")
def messages():
    return on_processes(2, said)


@pytest.mark.parametrize("scene", REFUSALS, ids=lambda scene: scene.__name__)
def test_refusal_says_what_to_do(scene, messages):
    for of in messages:
        assert re.search(REFUSALS[scene], of[scene.__name__]), of[scene.__name__]
