"""Blocks compiled between their low-rank layers: the numbers of eager mode, two graphs at most."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import rankwise as rw
from cases import close, normal
from compilers import Counting
from rankwise.nn.low_rank import low_rank_layers
from rankwise.numerics.init import truncated_svd

WIDTH, BLOCKS = 20, 2
MAPS = ("q", "k", "v", "o", "up", "down")
STRETCHES = 5
"""Of a block, with something to compute: x to q, attention to o, o to up, up to down, the rest."""

pytestmark = [
    # Of torch, when it loads its compiler.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    # Of torch's compiler, which looks at results that a graph begins with, and hides it elsewhere.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        h = self.first(x)
        a = functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
        x = x + self.dropout(self.o(a))
        return x + self.dropout(self.down(functional.gelu(self.up(self.second(x)))))


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0, checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 3)
        self.checkpointed = checkpointed

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


def net(dtype: torch.dtype = torch.float64, whole: bool = False, **options) -> Net:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Net(**options)
    make = rw.factorize_ if whole else rw.adapt_
    make(model, rank=4, select=MAPS)
    return model.to(dtype)


def change_ranks_(model: nn.Module, step: int, draw: torch.Generator) -> None:
    """All of 1 to 16, another in each layer and step, now and then the same in several."""
    for i, layer in enumerate(low_rank_layers(model).values()):
        rank = 1 + (5 * step + (i if step % 3 else i // 4)) % 16
        point = truncated_svd(normal(*layer.shape, draw=draw), rank)
        layer.set_factors_(type(point)(*(t.to(layer.U.dtype) for t in point)))
        layer.resting = frozenset("UV" if (step + i) % 4 == 0 else "")


def results(model: nn.Module, x: torch.Tensor, autocast: bool) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        y = model(x)
    y.float().square().mean().backward() if autocast else y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("options", "autocast", "tolerance"),
    [
        ({}, False, 1e-10),
        ({"whole": True, "dropout": 0.1}, False, 1e-10),
        ({"dropout": 0.1, "checkpointed": True}, False, 1e-10),
        ({"dtype": torch.float32}, False, 1e-5),
        ({"dtype": torch.float32}, True, 5e-2),
    ],
)
def test_two_graphs_at_most_serve_all_ranks(options, autocast, tolerance, draw):
    eager = net(**options)
    model, backend = copy.deepcopy(eager), Counting()
    assert rw.nn.compile_regions(model, backend=backend) == [f"blocks.{i}" for i in range(BLOCKS)]
    for step in range(6):
        change_ranks_(eager, step, draw)
        for one, other in zip(*(low_rank_layers(m).values() for m in (model, eager)), strict=True):
            one.set_factors_(other.factors())
            one.resting = other.resting
        x = normal(4, 6, WIDTH, draw=draw).to(options.get("dtype", torch.float64))
        pairs = zip(results(model, x, autocast), results(eager, x, autocast), strict=True)
        for got, expected in pairs:
            assert (got - expected).norm() <= tolerance * expected.norm()
        if step == 0:
            first = backend.graphs
    # The first block's input needs no gradient, and that of the others does: hence two.
    assert STRETCHES <= backend.graphs == first <= 2 * STRETCHES
    model.eval(), eager.eval()
    with torch.no_grad():
        close(model(x), eager(x), tolerance)
    assert backend.graphs <= 3 * STRETCHES


def test_a_whole_model_may_be_compiled_around_its_layers(draw):
    model, backend = net(), Counting()
    eager = copy.deepcopy(model)
    assert rw.nn.compile_regions(model, regions=()) == []
    compiled = torch.compile(model, backend=backend)
    for step in range(4):
        change_ranks_(model, step, draw)
        eager.load_state_dict(model.state_dict())
        x = normal(4, 6, WIDTH, draw=draw)
        close(compiled(x), eager(x))
        if step == 0:
            first = backend.graphs
    assert 0 < backend.graphs == first


def test_an_optimizer_trains_compiled_regions_as_it_does_eager_ones(draw):
    eager = net()
    model = copy.deepcopy(eager)
    rw.nn.compile_regions(model, backend="eager")
    x = normal(8, 6, WIDTH, draw=draw)
    losses = []
    for one in (model, eager):
        optimizer = rw.Optimizer(one, lr=1e-2, rank_rule=rw.Tolerance(rtol=0.2, every=2))
        for _ in range(4):
            loss = (one(x) - 1.0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    ranks = [[layer.rank for layer in low_rank_layers(m).values()] for m in (model, eager)]
    assert ranks[0] == ranks[1] != [4] * len(ranks[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_runs_by_its_own_factors(copied, draw):
    model, x = net(), normal(4, 6, WIDTH, draw=draw)
    rw.nn.compile_regions(model, backend="eager")
    before = model(x)
    twin = copied(model)
    change_ranks_(twin, 1, draw)
    assert (twin(x) - before).norm() > 0.1 * before.norm()
    assert torch.equal(model(x), before)


def test_a_copy_of_a_compiled_layer_runs_by_its_own_factors(draw):
    layer = net().blocks[0].q
    layer.compile(backend="eager")
    twin, x = copy.deepcopy(layer), normal(4, WIDTH, draw=draw)
    twin.set_factors_(truncated_svd(normal(WIDTH, WIDTH, draw=draw), 2))
    assert (twin(x) - layer(x)).norm() > 0.1 * layer(x).norm()


def test_regions_are_outermost_blocks_that_repeat_and_hold_low_rank_layers():
    model = nn.Module()
    model.stem = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    model.stages = nn.ModuleList(nn.ModuleList(Block(0.0) for _ in range(2)) for _ in range(2))
    model.once = nn.ModuleList([Block(0.0), nn.ReLU(), nn.ReLU()])
    for block in model.stages[1]:
        block.experts = nn.ModuleList(Block(0.0) for _ in range(2))
    rw.adapt_(model, rank=2, exclude=["experts.*", "stages.0.*"])
    for block in model.stages[1]:
        assert not isinstance(block.experts[0].q, rw.LowRankLinear)
    assert rw.nn.compile_regions(model, backend="eager") == ["stages.1.0", "stages.1.1"]
    assert rw.nn.compile_regions(model, regions=["once", "stem"]) == ["stem", "once"]


def test_what_cannot_be_compiled_is_refused():
    model = net()
    for given, error, message in [
        ({"regions": "blocks.0"}, TypeError, "must be several names"),
        ({"regions": ["blocks.9"]}, ValueError, "names 'blocks.9', which is no module"),
        ({"regions": ["blocks.0.q"]}, ValueError, "'blocks.0.q', which is a low-rank layer"),
        ({"fullgraph": True}, ValueError, "graphs end at every low-rank layer"),
    ]:
        with pytest.raises(error, match=message):
            rw.nn.compile_regions(model, **given)
    with pytest.raises(ValueError, match="no blocks that repeat"):
        rw.nn.compile_regions(model.blocks[0])
    with pytest.raises(ValueError, match="has no low-rank layers"):
        rw.nn.compile_regions(Net())
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        rw.nn.compile_regions(lambda x: x)
