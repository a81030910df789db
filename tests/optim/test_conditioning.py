"""Conditioning inside the optimizer: every step, rule and kind of layer, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn

import rankwise as rw
from cases import close
from images import mixed
from images import train as train_images
from naming import told
from networks import adapter, thin_layers, train
from rankwise import robust
from rankwise.integrators import BUG, AugmentedBUG, AugmentedPSI, BasisEvery, ParallelBUG
from rankwise.nn import LowRankLinear, TuckerConv2d
from rankwise.numerics.condition import condition_number, spread
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.tucker import first_mode, hosvd
from rankwise.numerics.tucker_tangent import project_kernel

RULES = [rw.SGD(), rw.HeavyBall(), rw.Adam(), rw.Spectral()]
KINDS = [
    robust.SpreadPenalty(0.5),
    robust.ConditionLimit(1.5),
    robust.ConditionLimit(1.5, robust.clipped_about_mean),
    robust.ConditionLimit(1.5, robust.clipped_about_root_mean_square),
    robust.OrthonormalCore(),
    robust.NormLimit(0.5),
]
LIMITS = [kind for kind in KINDS if isinstance(kind, robust.ConditionLimit)]


def matrix_layer(sigma: list[float], scale: float = 1.0) -> LowRankLinear:
    draw = torch.Generator().manual_seed(0)
    bases = [
        torch.linalg.qr(torch.randn(n, len(sigma), dtype=torch.float64, generator=draw))[0]
        for n in (9, 8)
    ]
    S = torch.diag(torch.tensor(sigma, dtype=torch.float64))
    return LowRankLinear(Factors(bases[0], S, bases[1]), scale=scale)


def sigma_of(layer) -> torch.Tensor:
    return torch.linalg.svdvals(first_mode(layer.factors()[1])) * abs(layer.scale)


def step(layer, optimizer) -> None:
    x = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    layer(x).sin().square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS, ids=told)
@pytest.mark.parametrize("rule", RULES, ids=told)
def test_training_reduces_the_loss_in_shape_and_with_orthonormal_bases(rule, kind):
    model = thin_layers()
    optimizer = rw.Optimizer(model, lr=1e-2, rule=rule, conditioning=kind)
    losses = train(model, optimizer, 0, 200)
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    for _, layer in optimizer.layers:
        assert orthonormality_defect(layer.U.detach()) < 1e-12
        sigma = sigma_of(layer)
        if isinstance(kind, robust.ConditionLimit):
            assert condition_number(sigma) <= kind.kappa * (1 + 1e-12)
        if isinstance(kind, robust.OrthonormalCore):
            assert condition_number(sigma) <= 1 + 1e-12
        if isinstance(kind, robust.NormLimit):
            assert sigma[0] <= kind.norm * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=told)
def test_tucker_kernels_and_matrices_side_by_side(kind):
    model = mixed()
    optimizer = rw.Optimizer(model, lr=1e-2, conditioning=kind)
    train_images(model, optimizer, 0, 20)
    for _, layer in optimizer.layers:
        sigma = sigma_of(layer)
        if kind in LIMITS:
            assert condition_number(sigma) <= kind.kappa * (1 + 1e-12)
        if isinstance(kind, robust.NormLimit):
            assert sigma[0] <= kind.norm * (1 + 1e-12)
    assert any(isinstance(layer, TuckerConv2d) for _, layer in optimizer.layers)


def test_the_spectrum_of_a_tucker_kernel_is_that_of_its_output_channels(draw):
    W, G = (torch.randn(6, 5, 3, 3, dtype=torch.float64, generator=draw) for _ in range(2))
    f = hosvd(W, (4, 3))
    end = project_kernel(f, 0.1 * G).displaced(f)
    plain, shaped = end.cut_to((4, 3)), end.cut_to((4, 3), lambda sigma: sigma.sqrt())
    before, after = (torch.linalg.svd(first_mode(p.dense())) for p in (plain, shaped))
    close(after.S[:4], before.S[:4].sqrt())
    close((after.U[:, :4] * before.U[:, :4]).sum(0).abs(), torch.ones(4, dtype=torch.float64))
    assert torch.equal(plain.U, shaped.U) and torch.equal(plain.V, shaped.V)


@pytest.mark.parametrize("scale", (1.0, -3.0))
def test_the_penalty_is_gradient_descent_on_the_loss_and_beta_spread(scale):
    """For SGD, to first order in the rate; of the weight as it acts, its scale included."""
    beta, h = 0.7, 1e-5
    layer = matrix_layer([2.0, 1.0, 0.4], scale)
    twin = copy.deepcopy(layer)
    options: dict = {"lr": h, "rule": rw.SGD(), "max_step": math.inf}
    step(layer, rw.Optimizer(layer, conditioning=robust.SpreadPenalty(beta), **options))
    step(twin, rw.Optimizer(twin, **options))
    S = torch.diag(sigma_of(twin)).requires_grad_()
    spread(S).backward()
    found = (sigma_of(twin) - sigma_of(layer)) / (h * beta)
    close(found, S.grad.diagonal(), 1e-3)
    close(layer.factors().U, twin.factors().U)


def test_beta_zero_is_no_penalty_at_all():
    model = thin_layers()
    twin = copy.deepcopy(model)
    train(model, rw.Optimizer(model, lr=1e-2, conditioning=robust.SpreadPenalty(0.0)), 0, 10)
    train(twin, rw.Optimizer(twin, lr=1e-2), 0, 10)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_strength_of_the_penalty_does_not_depend_on_the_size_of_weights_or_gradients():
    kappas = []
    for size in (1e-2, 1.0, 1e2):
        layer = matrix_layer([2.0 * size, size, 0.4 * size])
        kind = robust.SpreadPenalty(5e7)
        step(layer, rw.Optimizer(layer, lr=1e-9, conditioning=kind, max_step=math.inf))
        kappas.append(float(condition_number(sigma_of(layer))))
    assert kappas[0] < 4.9
    assert kappas == pytest.approx([kappas[0]] * 3, rel=1e-5)


def test_a_high_rate_is_forgiven_as_in_steps():
    def after(lr: float) -> torch.Tensor:
        layer = matrix_layer([2.0, 1.0, 0.4])
        kind = robust.SpreadPenalty(0.5)
        step(layer, rw.Optimizer(layer, lr=lr, max_step=0.01, conditioning=kind))
        return sigma_of(layer)

    close(after(0.3), after(0.03))
    assert (after(0.3) - after(0.001)).norm() > 1e-3


@pytest.mark.parametrize("rule", [rw.SGD(), rw.Adam()], ids=told)
def test_without_a_rate_it_acts_in_proportion_to_the_steps(rule):
    def kappa_after(beta: float, start: float) -> float:
        layer = matrix_layer([2.0, 1.0, 0.4])
        free = rw.RateFree(start=start)
        kind = robust.SpreadPenalty(beta)
        step(layer, rw.Optimizer(layer, rule=rule, control=free, conditioning=kind))
        return math.log(float(condition_number(sigma_of(layer))))

    plain = [kappa_after(0.0, start) for start in (1e-4, 2e-4)]
    drops = [p - kappa_after(0.5, s) for p, s in zip(plain, (1e-4, 2e-4), strict=True)]
    assert drops[0] > 0
    assert drops[1] / drops[0] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    "integrator",
    [ParallelBUG(), AugmentedBUG(), AugmentedPSI(), BasisEvery(ParallelBUG(), every=3)],
    ids=told,
)
@pytest.mark.parametrize("kind", LIMITS, ids=told)
def test_every_integrator_of_one_backward_pass(kind, integrator):
    model = thin_layers()
    train(model, rw.Optimizer(model, lr=1e-2, integrator=integrator, conditioning=kind), 0, 7)
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            assert condition_number(sigma_of(layer)) <= kind.kappa * (1 + 1e-12)


def test_an_integrator_that_runs_the_model_again():
    layer = matrix_layer([2.0, 1.0, 0.4])
    kind = robust.ConditionLimit(1.2)
    optimizer = rw.Optimizer(layer, lr=0.01, rule=rw.SGD(), integrator=BUG(), conditioning=kind)
    x = torch.randn(20, 8, dtype=torch.float64)

    def closure():
        loss = layer(x).sin().square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert condition_number(sigma_of(layer)) <= 1.2 * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=told)
def test_an_adapter_that_starts_at_zero(kind):
    model = nn.Sequential(adapter(), nn.Tanh(), nn.Linear(8, 2, dtype=torch.float64))
    optimizer = rw.Optimizer(model, lr=1e-2, conditioning=kind)
    losses = train(model, optimizer, 0, 200)
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    for _, layer in optimizer.layers:
        assert bool(layer.factors().S.any())


@pytest.mark.parametrize(
    "rule",
    [
        rw.Tolerance(rtol=0.2, every=4, grow=2),
        rw.TailTolerance(rtol=0.2, every=3),
        rw.Budget(parameters=40, every=4, grow=2),
    ],
    ids=told,
)
def test_ranks_adapt_under_the_penalty(rule):
    model = thin_layers()
    optimizer = rw.Optimizer(model, lr=1e-2, rank_rule=rule, conditioning=robust.SpreadPenalty(0.1))
    ranks = {tuple(layer.rank for _, layer in optimizer.layers)}
    for start in range(0, 12):
        train(model, optimizer, start, start + 1)
        ranks.add(tuple(layer.rank for _, layer in optimizer.layers))
    assert len(ranks) > 1


@pytest.mark.parametrize("kind", [robust.ConditionLimit(2.0), robust.OrthonormalCore()])
@pytest.mark.parametrize("rule", [rw.Tolerance(), rw.TailTolerance(), rw.Budget(parameters=50)])
def test_a_limit_and_a_rule_that_grows_are_refused(kind, rule):
    with pytest.raises(ValueError, match=r"conditioning=.*every new direction"):
        rw.Optimizer(thin_layers(), rank_rule=rule, conditioning=kind)


def test_a_limit_and_a_rule_that_only_cuts_go_together():
    model = thin_layers()
    rule = rw.Budget(parameters=1, min_rank=2, every=2, grow=0)
    kind = robust.ConditionLimit(1.3)
    train(model, rw.Optimizer(model, lr=1e-2, rank_rule=rule, conditioning=kind), 0, 12)
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            assert layer.rank == 2
            assert condition_number(sigma_of(layer)) <= 1.3 * (1 + 1e-12)


def test_resumed_it_goes_on_exactly(tmp_path):
    def made():
        torch.manual_seed(0)
        model = thin_layers()
        return model, rw.Optimizer(model, lr=1e-2, conditioning=robust.SpreadPenalty(0.3))

    model, optimizer = made()
    train(model, optimizer, 0, 5)
    rw.save_training(tmp_path / "s.safetensors", model=model, optimizer=optimizer, progress={})
    train(model, optimizer, 5, 10)
    other, again = made()
    rw.load_training(tmp_path / "s.safetensors", model=other, optimizer=again)
    train(other, again, 5, 10)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: robust.SpreadPenalty(-0.1), r"beta=\.\.\.\)` must be finite and not negative"),
        (lambda: robust.SpreadPenalty(math.nan), "must be finite"),
        (lambda: robust.ConditionLimit(0.1), "at least 1, got 0.1; CondLR's tau is kappa - 1"),
        (lambda: robust.ConditionLimit(math.inf), "must be finite"),
        (lambda: robust.NormLimit(0.0), "finite and positive, got 0.0"),
    ],
)
def test_values_that_cannot_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kinds_of_argument_that_cannot_work():
    with pytest.raises(TypeError, match="project"):
        robust.ConditionLimit(2.0, project="mean")
    with pytest.raises(TypeError, match=r"conditioning=\.\.\.\)` must be an instance"):
        rw.Optimizer(thin_layers(), conditioning=robust.SpreadPenalty)
    with pytest.raises(TypeError, match="Conditioning"):
        rw.Optimizer(thin_layers(), conditioning=0.1)


@pytest.mark.parametrize("wrong", [lambda s, k: s[:1], lambda s, k: s.mean(), lambda s, k: None])
def test_a_projection_of_another_shape_is_told_before_any_weight_changes(wrong):
    layer = matrix_layer([2.0, 1.0, 0.4])
    before = copy.deepcopy(layer.state_dict())
    optimizer = rw.Optimizer(layer, conditioning=robust.ConditionLimit(2.0, wrong))
    with pytest.raises(ValueError, match=r"ConditionLimit.*of the shape .*\(3,\), got"):
        step(layer, optimizer)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_a_model_without_low_rank_layers_has_no_spectra_to_keep():
    dense = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"conditioning=NormLimit.*trains none: call"):
        rw.Optimizer(dense, conditioning=robust.NormLimit(1.0))
    frozen = thin_layers().requires_grad_(False)
    frozen.append(nn.Linear(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="trains none"):
        rw.Optimizer(frozen, conditioning=robust.NormLimit(1.0))


def test_condition_numbers_by_layer():
    model = nn.Sequential(
        matrix_layer([2.0, 0.5]),
        LowRankLinear(truncated_svd(torch.zeros(3, 3), 2)),
        nn.Conv2d(2, 3, 3),
    )
    found = robust.condition_numbers(model)
    assert list(found) == ["0", "1", "2"]
    assert found["0"] == pytest.approx(4.0) and found["1"] == 1.0
    sigma = torch.linalg.svdvals(model[2].weight.detach().flatten(1).double())
    assert found["2"] == pytest.approx(float(sigma[0] / sigma[-1]))
    assert robust.condition_numbers(nn.ReLU()) == {}
    # Of an adapter it is that of what it adds, not of the base below it.
    assert all("base" not in name for name in robust.condition_numbers(adapter()))
