"""The formulas of what a process sends and holds, beside what really is sent and held."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import rankwise as rw
from rankwise.distributed import cost, prepare
from rankwise.distributed.cost import Cost
from rankwise.numerics.init import variance_preserving
from rankwise.optim.dense import adamw_

SHAPES = [(20, 12, 3), (12, 20, 1), (7, 7, 7), (5, 9, 5)]


def ring(numbers: int, processes: int) -> tuple[list[int], list[list[int]]]:
    """All-reduce of vectors of ones by the ring: numbers sent by each process, and the sums."""
    held = [[1] * numbers for _ in range(processes)]
    sent = [0] * processes
    parts = [range(i * numbers // processes, (i + 1) * numbers // processes)
             for i in range(processes)]  # fmt: skip

    def turn(first: int, adds: bool) -> None:
        for step in range(processes - 1):
            before = [list(vector) for vector in held]
            for rank in range(processes):
                to = (rank + 1) % processes
                for i in parts[(rank + first - step) % processes]:
                    held[to][i] = before[rank][i] + (before[to][i] if adds else 0)
                    sent[rank] += 1

    turn(0, adds=True)
    turn(1, adds=False)
    return sent, held


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_a_ring_sends_what_the_formula_says(processes):
    numbers = 8 * 3
    sent, held = ring(numbers, processes)
    assert held == [[processes] * numbers] * processes
    assert sent == [cost.ring_all_reduce(numbers, processes)] * processes
    assert cost.ring_all_gather(numbers, processes) == sent[0] / 2


def trained(model: nn.Module, features: int) -> rw.Optimizer:
    optimizer = rw.Optimizer(model)
    model(torch.randn(30, features)).square().mean().backward()
    optimizer.step()
    return optimizer


def numbers(value) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    return sum(map(numbers, value)) if isinstance(value, tuple) else 0


@pytest.mark.parametrize("m, n, rank", SHAPES)
@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole"])
def test_low_rank_holds_what_the_formula_says(m, n, rank, whole):
    model = nn.Sequential(nn.Linear(n, m, bias=False))
    if whole:
        factors = variance_preserving(m, n, rank, like=torch.empty(0))
        model = nn.Sequential(rw.LowRankLinear(factors))
    else:
        rw.adapt_(model, rank=rank)
    optimizer = trained(model, n)
    said = cost.low_rank(m, n, rank, 4)
    base = Cost() if whole else cost.frozen(m, n)
    train = [p for p in model.parameters() if p.requires_grad]
    assert said.trained == sum(p.numel() for p in train)
    assert said.gradients == sum(p.grad.numel() for p in train)
    assert said.moments == sum(numbers(v) for s in optimizer.state.values() for v in s.values())
    assert base.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("m, n, rank", SHAPES)
def test_dense_weights_and_two_factors_hold_what_the_formula_says(m, n, rank):
    sides = [[torch.ones(m, n)], [torch.ones(rank, n), torch.ones(m, rank)]]
    for weights, said in zip(
        sides, [cost.dense(m, n, 4), cost.two_factors(m, n, rank, 4)], strict=True
    ):
        state = {w: {} for w in weights}
        for w in weights:
            w.grad = torch.ones_like(w)
        adamw_(weights, state, {"betas": (0.9, 0.999), "lr": 1e-3, "weight_decay": 0, "eps": 1e-8})
        moments = [s[name] for s in state.values() for name in ("exp_avg", "exp_avg_sq")]
        assert said.trained == said.gradients == sum(w.numel() for w in weights)
        assert said.moments == sum(t.numel() for t in moments)
        assert said.reduced == 2 * 3 / 4 * said.gradients


def test_shares_of_all_processes_are_the_whole():
    whole, share = cost.dense(24, 10, 6), cost.sharded_dense(24, 10, 6)
    for name in ("trained", "gradients", "moments"):
        assert 6 * getattr(share, name) == getattr(whole, name)
    assert 6 * cost.sharded_frozen(24, 10, 6).frozen == cost.frozen(24, 10).frozen
    # Both gathers and the reduce-scatter make one and a half all-reduces.
    assert share.reduced + share.gathered == 1.5 * whole.reduced


class Collectives(TorchDispatchMode):
    """Numbers that go through all-gathers and reduce-scatters, the whole of each."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = self.reduced = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered += args[0].numel()
        elif func is torch.ops.c10d._reduce_scatter_base_.default:
            self.reduced += args[1].numel()
        else:
            assert func.namespace != "c10d"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def eight_processes():
    """One of eight, whose messages go nowhere, once it is called."""

    def begin() -> None:
        dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype, size", [(None, 4), (torch.bfloat16, 2)])
def test_one_message_is_as_long_as_the_formula_says(dtype, size, eight_processes):
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6))
    rw.factorize_(model, rank={"0": 3, "2": 2})
    replicas = prepare(model, dtype=dtype)
    eight_processes()
    replicas.start()
    said = cost.low_rank(20, 12, 3, 8) + cost.low_rank(6, 20, 2, 8)
    for _ in range(2):
        model(torch.randn(9, 12)).square().mean().backward()
        assert cost.ring_all_reduce(replicas.traffic.last, 8) == size * said.reduced
    assert replicas.traffic.messages == 2


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False), nn.ReLU())


@pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "frozen base"])
def test_fsdp_gathers_and_reduces_what_the_formula_says(low_rank, eight_processes):
    model = nn.Sequential(block(), block(), nn.Linear(16, 8, bias=False))
    if low_rank:
        rw.adapt_(model, rank=4, exclude="2")
    factors = {p for p in model.parameters() if p.requires_grad} if low_rank else set()
    eight_processes()
    mesh = init_device_mesh("cpu", (8,))
    for module in (model[0], model[1], model):
        fully_shard(module, mesh=mesh, ignored_params=factors)
    of = cost.sharded_frozen if low_rank else cost.sharded_dense
    said = sum((of(16, 32, 8) for _ in range(4)), of(16, 8, 8, gathers=1))
    for _ in range(2):
        with Collectives() as seen:
            model(torch.randn(3, 16)).sum().backward()
        assert said.gathered == cost.ring_all_gather(seen.gathered, 8)
        assert said.reduced == cost.ring_all_gather(seen.reduced, 8)
    held = [p.to_local().numel() for p in model.parameters() if p not in factors]
    assert said.frozen + said.trained == sum(held)


def test_one_process_sends_nothing():
    for said in (
        cost.dense(6, 4, 1),
        cost.two_factors(6, 4, 2, 1),
        cost.low_rank(6, 4, 2, 1),
        cost.sharded_frozen(6, 4, 1),
        cost.sharded_dense(6, 4, 1),
    ):
        assert said.reduced == said.gathered == 0


def test_costs_add_up():
    both = cost.frozen(6, 4) + cost.low_rank(6, 4, 2, 3)
    assert (both.frozen, both.trained) == (24, 24)
    assert both.reduced == 2 * 2 / 3 * (24 + cost.FLAGS)


def test_there_is_no_less_than_one_process():
    with pytest.raises(ValueError, match="`processes` must be at least 1, got 0"):
        cost.low_rank(6, 4, 2, 0)
