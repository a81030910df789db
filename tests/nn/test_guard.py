"""Stock optimizers and averages meet factors: an error at once, and none where none is due."""

import copy
import gc
import sys
import threading
import time
import weakref

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from networks import adapter, batch, dense_of, thin_layers, train
from rankwise.nn import LowRankConv2d, TuckerConv2d, guard
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.tolerance import Tolerance
from rankwise.surgery.factorize import factorize_

STOCK = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1),
}


def gradients(model: nn.Module) -> None:
    x, y = batch(0)
    (model(x) - y).square().mean().backward()


@pytest.mark.parametrize("kind", STOCK)
def test_a_stock_optimizer_is_refused_before_it_changes_anything(kind):
    model = thin_layers()
    before = copy.deepcopy(model.state_dict())
    optimizer = STOCK[kind](model.parameters())
    gradients(model)
    wanted = r"holds U \(8, 2\) of a LowRankLinear.*`rankwise.Optimizer\(model\)`"
    for _ in range(2):
        with pytest.raises(ValueError, match=wanted):
            optimizer.step(lambda: 0.0)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_fused_adamw_is_refused_after_ranks_have_changed():
    """Its kernel would read beyond the old state."""
    model = thin_layers(torch.float32)
    train(model, Optimizer(model, lr=1e-2, rank_rule=Tolerance(every=3, grow=2)), 0, 4)
    with pytest.raises(ValueError, match="must not step"):
        train(model, torch.optim.AdamW(model.parameters(), fused=True), 4, 5)


@pytest.mark.parametrize("convolution", [LowRankConv2d, TuckerConv2d])
def test_convolutions_are_guarded_too(convolution):
    model = nn.Sequential(nn.Conv2d(6, 8, 3))
    factorize_(model, rank=2, min_features=2, convolution=convolution)
    model(torch.randn(2, 6, 5, 5)).sum().backward()
    with pytest.raises(ValueError, match=f"of a {convolution.__name__}"):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_copies_and_unpickled_layers_are_guarded(tmp_path):
    copied = copy.deepcopy(thin_layers())
    torch.save(copied, tmp_path / "model.pt")
    for model in (copied, torch.load(tmp_path / "model.pt", weights_only=False)):
        gradients(model)
        with pytest.raises(ValueError, match="must not step"):
            torch.optim.AdamW(model.parameters()).step()


def test_factors_that_were_added_as_a_group_are_found():
    model = thin_layers()
    optimizer = torch.optim.AdamW(model[4].parameters())
    gradients(model)
    optimizer.step()
    optimizer.add_param_group({"params": [model[0].S]})
    with pytest.raises(ValueError, match="holds S"):
        optimizer.step()


def test_frozen_factors_and_other_parameters_are_anybodys():
    model = thin_layers()
    head = torch.optim.AdamW(model[4].parameters(), lr=0.1)
    gradients(model)
    head.step()
    model.zero_grad()
    for layer in (model[0], model[2]):
        layer.requires_grad_(False)
    everything = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    before = dense_of(model)
    train(model, everything, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, dense_of(model), strict=True))
    model[0].U.requires_grad_(True)
    with pytest.raises(ValueError, match="holds U"):
        everything.step()


def test_our_own_optimizer_its_heirs_and_what_wraps_it_are_let_through():
    class Heir(Optimizer):
        pass

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, inner.defaults)
            self.inner = inner

        def step(self, closure=None):
            return self.inner.step(closure)

    losses = []
    for kind in (Optimizer, Heir, lambda model, lr: Wrapper(Optimizer(model, lr=lr))):
        model = thin_layers()
        losses.append(train(model, kind(model, lr=1e-2), 0, 5))
    assert losses[0] == losses[1] == losses[2]


def test_an_optimizer_of_ones_own_says_that_it_is_made_for_factors():
    class Mine(torch.optim.SGD):
        trains_factors = True

    layer = adapter()
    layer(batch(0)[0]).sum().backward()
    before = layer.S.detach().clone()
    Mine([layer.S], lr=0.1).step()
    assert not torch.equal(layer.S, before)


def test_nothing_is_kept_alive():
    model = thin_layers()
    optimizer = torch.optim.AdamW(model[4].parameters())
    gradients(model)
    optimizer.step()
    gone = [weakref.ref(optimizer), weakref.ref(model[0])]
    del model, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_step_that_has_been_looked_at_costs_microseconds():
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(500)]
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights[:4]] + [{"params": weights[4:]}])
    optimizer.step()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        guard._before_step(optimizer, (), {})
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-5


# Of torch, when it loads its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_stock_step_compiles_with_the_guard_in_place():
    thin_layers()
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.grad = torch.ones(3)
    torch.compile(optimizer.step, backend="eager")()
    assert torch.equal(weight.detach(), torch.full((3,), 0.5))


def test_an_average_of_factors_is_refused_where_it_begins():
    with pytest.raises(ValueError, match="no basis"):
        AveragedModel(thin_layers())
    with pytest.raises(ValueError, match="no basis"):
        AveragedModel(adapter())
    frozen = thin_layers()
    for layer in (frozen[0], frozen[2]):
        layer.requires_grad_(False)
    AveragedModel(frozen).update_parameters(frozen)
    AveragedModel(nn.Linear(2, 2))


def test_layers_are_made_in_one_thread_while_another_one_steps():
    done, switching = threading.Event(), sys.getswitchinterval()
    kept = []

    def make() -> None:
        while not done.is_set():
            kept.append(adapter())

    maker = threading.Thread(target=make)
    sys.setswitchinterval(1e-6)
    maker.start()
    try:
        steps = 0
        while steps < 100 or len(kept) < 20:
            steps += 1
            other = nn.Parameter(torch.zeros(1))
            other.grad = torch.ones(1)
            torch.optim.SGD([other], lr=0.1).step()
    finally:
        done.set()
        maker.join()
        sys.setswitchinterval(switching)
