"""Networks by name and by import path, and the form in which they run."""

import sys

import pytest
import torch
from torch import nn

from rankwise.optim.optimizer import Optimizer
from rankwise.recipes.comparison import in_use
from rankwise.recipes.low_rank_start import START, rank_rule, start_for
from rankwise.recipes.networks import BUILT_IN, network
from rankwise.recipes.twins import low_rank_network
from rankwise.report.size import trained_parameters

FACTS = {"classes": 10, "channels": 1, "size": 28}


def images(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_network_classifies_and_starts_by_its_seed(name):
    model, same, other = (network(name, **FACTS, seed=seed) for seed in (0, 0, 1))
    assert model(images()).shape == (3, 10)
    pairs = [zip(model.parameters(), m.parameters(), strict=True) for m in (same, other)]
    assert all(torch.equal(p, q) for p, q in pairs[0])
    assert not all(torch.equal(p, q) for p, q in pairs[1])


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_form_that_runs_computes_the_same_and_holds_what_is_counted(name):
    dense = network(name, **FACTS, seed=0)
    low_rank = low_rank_network(dense, start_for(dense, 0.2), seed=0).eval()
    plain = in_use(low_rank)
    torch.testing.assert_close(plain(images()), low_rank(images()), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in plain.parameters()) == trained_parameters(Optimizer(low_rank))
    assert sum(p.numel() for p in dense.parameters()) == trained_parameters(Optimizer(dense))


def test_layers_that_share_a_weight_are_counted_once():
    dense = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40))
    dense[2].weight = dense[0].weight
    start = start_for(dense, 0.5)
    assert start.shapes == {"0": (40, 40)} and start.ranks == {"0": 19, "2": 19}
    low_rank = low_rank_network(dense, start, seed=0)
    assert trained_parameters(Optimizer(low_rank)) == 80 + 19 * 80


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_start_holds_at_most_so_many_times_the_budget(name, share):
    dense = network(name, **FACTS, seed=0)
    start = start_for(dense, share)
    cost = sum(start.ranks[k] * (sum(shape) + 1) for k, shape in start.shapes.items())
    assert 0.7 * START * start.budget < cost <= START * start.budget
    assert all(start.ranks[k] * (m + n) < m * n for k, (m, n) in start.shapes.items())


def test_small_layers_stay_dense_and_a_share_below_them_is_refused():
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 5))
    assert start_for(model, 0.5).shapes == {"0": (30, 40)}
    # 30 + 150 + 5 stay dense of 1385; one direction takes 30 + 40 + 1.
    assert start_for(model, 256.5 / 1385).ranks == {"0": 3}
    with pytest.raises(ValueError, match="--keep must be at least 0.185 here: 185 of 1,385"):
        start_for(model, 255.5 / 1385)
    with pytest.raises(ValueError, match="no layer of at least 16 rows"):
        start_for(model[1:], 0.5)


@pytest.mark.parametrize("steps", [40, 300, 3000, 30_000])
def test_half_of_the_steps_bring_a_start_down_to_the_budget(steps):
    rule = rank_rule(start_for(network("mlp", **FACTS, seed=0), 0.1), steps, None)
    assert rule.keep ** (steps // 2 // rule.every) <= 1.001 / START
    assert 2 <= rule.every <= 100 and rule.keep <= 0.9


MODULE = """
from torch import nn
def takes_all(classes, channels, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size ** 2, classes))
def takes_some(classes, width=20):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, classes))
def takes_any(**facts):
    return takes_all(**facts)
def takes_none():
    return nn.Flatten()
def no_module():
    return 3
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "own_networks"
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize("name", ["takes_all", "takes_some", "takes_any", "takes_none"])
def test_a_factory_gets_what_it_takes(own_module, name):
    model = network(f"{own_module}:{name}", **FACTS, seed=0)
    assert len(model(images())) == 3


@pytest.mark.parametrize(
    "name, error, message",
    [
        (
            "mpl",
            ValueError,
            "one of mlp, lenet, cnn, vgg, mobile, vit or an import path .* got 'mpl'",
        ),
        ("own_networks:", ValueError, "an import path such as package.module:factory"),
        ("no_such_module:f", ImportError, "could not be imported: No module named"),
        ("own_networks:absent", ImportError, "could not be imported: .*no attribute 'absent'"),
        ("own_networks:number", TypeError, "is int, which cannot be called"),
        ("own_networks:no_module", TypeError, "returned int, not a torch.nn.Module"),
    ],
)
def test_a_path_that_leads_to_no_network_is_refused(own_module, name, error, message):
    with pytest.raises(error, match=message):
        network(name, **FACTS, seed=0)


def test_a_vision_transformer_needs_sizes_that_its_patches_divide():
    assert network("vit", classes=2, channels=3, size=16, seed=0)(torch.zeros(1, 3, 16, 16)).shape
    with pytest.raises(ValueError, match="--model vit cuts patches of 4; images of 18"):
        network("vit", classes=2, channels=3, size=18, seed=0)


def test_lenet_needs_images_that_two_convolutions_leave_something_of():
    assert network("lenet", classes=2, channels=1, size=16, seed=0)(torch.zeros(1, 1, 16, 16)).shape
    with pytest.raises(ValueError, match="at least 16 x 16, got 15 x 15"):
        network("lenet", classes=2, channels=1, size=15, seed=0)


def test_vgg_needs_images_that_three_pools_leave_something_of():
    assert network("vgg", classes=2, channels=1, size=8, seed=0)(torch.zeros(1, 1, 8, 8)).shape
    with pytest.raises(ValueError, match="--model vgg needs images of at least 8 x 8, got 7 x 7"):
        network("vgg", classes=2, channels=1, size=7, seed=0)
