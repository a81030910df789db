"""Darcy flow: its symmetries, its errors, and the network in its forms."""

import copy
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rankwise as rw
from rankwise.recipes.darcy import (
    POINTS,
    SIDE,
    SYMMETRIES,
    Darcy,
    Flows,
    Scale,
    SolutionOperator,
    darcy,
    mirrored,
    relative_error,
    weights,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "darcy.py"


def solved(a: Tensor) -> Tensor:
    """Finite volumes on the inner points of the grid: `-div(k grad u) = 1`, `k = 3` or `12`."""
    k = torch.nn.functional.pad(7.5 + 4.5 * a[:, None].double(), (1, 1, 1, 1), mode="replicate")[
        :, 0
    ]
    matrix = torch.zeros(len(a), SIDE, SIDE, POINTS, dtype=torch.float64)
    at = torch.arange(POINTS).reshape(SIDE, SIDE)
    inner = k[:, 1:-1, 1:-1]
    for axis, shift in ((1, -1), (1, 1), (2, -1), (2, 1)):
        beside = k.roll(-shift, axis)[:, 1:-1, 1:-1]
        flux = 2 * inner * beside / (inner + beside)
        for i, j in torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).tolist():
            matrix[:, i, j, at[i, j]] += flux[:, i, j]
            near = (i + shift, j) if axis == 1 else (i, j + shift)
            if 0 <= min(near) and max(near) < SIDE:
                matrix[:, i, j, at[near]] -= flux[:, i, j]
    ones = torch.full((len(a), POINTS), 1 / (SIDE + 1) ** 2, dtype=torch.float64)
    return torch.linalg.solve(matrix.flatten(1, 2), ones).unflatten(1, (SIDE, SIDE)).float()


@pytest.fixture(scope="module")
def flows() -> Flows:
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(12, 1, 4, 4, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    a = smooth[:, 0].sign()
    return Flows(a, solved(a))


def network(flows: Flows, width: int = 40) -> SolutionOperator:
    torch.manual_seed(0)
    return SolutionOperator(Scale.of(flows.u), width, corrections=2)


@pytest.mark.parametrize("symmetry", range(SYMMETRIES))
def test_a_mirrored_flow_is_the_flow_through_the_mirrored_medium(flows, symmetry):
    a, u = mirrored(flows, symmetry)
    torch.testing.assert_close(solved(a), u)


def test_the_eight_symmetries_are_different(flows):
    images = [mirrored(flows, k).a for k in range(SYMMETRIES)]
    assert all(not torch.equal(images[i], images[j]) for i in range(8) for j in range(i))


def test_the_scale_is_undone_and_does_not_see_mirrors(flows):
    scale = Scale.of(flows.u)
    v = scale.normalised(flows.u)
    torch.testing.assert_close(scale.restored(v), flows.u)
    torch.testing.assert_close(v.square().mean(), torch.tensor(1.0))
    for k in range(SYMMETRIES):
        for one, other in zip(Scale.of(mirrored(flows, k).u), scale, strict=True):
            torch.testing.assert_close(one, other)


def test_the_truth_has_error_zero_and_nothing_has_error_one(flows):
    u = flows.u
    assert relative_error(u, u).tolist() == [0.0] * len(u)
    assert relative_error(torch.zeros_like(u), u).tolist() == [1.0] * len(u)
    torch.testing.assert_close(relative_error(1.25 * u, u), torch.full((len(u),), 0.25))


def test_weights_are_counted_without_biases(flows):
    matrices = [p for p in network(flows).parameters() if p.ndim == 2]
    assert sum(p.numel() for p in matrices) == weights(40, corrections=2)


def test_without_corrections_it_is_the_mean_solution(flows):
    mean = SolutionOperator(Scale.of(flows.u), corrections=0)(flows.a)
    torch.testing.assert_close(mean, Scale.of(flows.u).mean.expand(len(flows.a), SIDE, SIDE))


def test_its_dense_form_computes_what_the_low_rank_network_does(flows):
    model = network(flows)
    rw.factorize_(model, rank=5, init=rw.init.Random())
    plain = copy.deepcopy(model)
    rw.densify_(plain)
    assert {type(m) for m in plain.modules()} == {type(m) for m in network(flows).modules()}
    torch.testing.assert_close(plain(flows.a), model(flows.a))
    torch.testing.assert_close(rw.shrink(model)(flows.a), model(flows.a))


def test_it_learns_within_a_budget(flows):
    model = network(flows)
    rw.factorize_(model, rank=6, init=rw.init.Random())
    rule = rw.Budget(parameters=6000, every=5)
    optimizer = rw.Optimizer(model, lr=0.05, max_step=0.03, rank_rule=rule)
    errors = []
    for _ in range(30):
        error = relative_error(model(flows.a), flows.u).mean()
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]
    assert sum(layer.rank * sum(layer.shape) for _, layer in optimizer.layers) <= 6000


def test_the_example_runs(flows, monkeypatch, capsys):
    monkeypatch.setattr("rankwise.recipes.darcy.darcy", lambda: Darcy(flows, flows, flows))
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "test relative L2 error" in capsys.readouterr().out


def test_the_data_are_whole():
    try:
        data = darcy()
    except RuntimeError as error:
        pytest.skip(f"the data could not be fetched: {error}")
    assert [len(flows.a) for flows in data] == [800, 200, 50]
    for a, u in data:
        assert a.shape == u.shape == (len(a), SIDE, SIDE)
        assert a.unique().tolist() == [-1.0, 1.0]
    # As far as 800 samples tell: a grid with its border row would be off by a fifth.
    mean = data.train.u.mean(0)
    for image in (mean.mT, mean.flip(0), mean.flip(1)):
        assert (image - mean).norm() < 0.03 * mean.norm()
