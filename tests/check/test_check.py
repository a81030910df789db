"""The diagnostics find what is right, and what is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from flows import ALL
from networks import adapter, batch, thin_layers
from rankwise.check import (
    RotatingFlow,
    Slope,
    order_of_retraction,
    order_of_step,
    orthonormality,
    stationarity,
)
from rankwise.integrators import Integrator
from rankwise.integrators.integrator import Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.retract import Frame, decompose, whole
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.update_rule import HeavyBall


@dataclass(frozen=True)
class FactorDescent(Integrator):
    """Explicit Euler for the equations of motion of the factors, with their inverse of `S`."""

    same_matrix: ClassVar[bool] = True
    points: ClassVar[int] = 1

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        inverse = torch.linalg.inv(f.S)
        U = f.U - (D.K - f.U @ D.C) @ inverse
        V = f.V - (D.L - f.V @ D.C.mT) @ inverse.mT
        (Q, R), (P, T) = torch.linalg.qr(U), torch.linalg.qr(V)
        return decompose(Frame(Q, P), R @ (f.S - D.C) @ T.mT)


def test_a_users_own_integrator_that_divides_by_singular_values_is_found_out():
    benign = order_of_step(FactorDescent(), smallest=0.1)
    assert 0.9 < benign.order < 1.3
    stiff, robust = (
        order_of_step(i, smallest=1e-8, outside=1e-2) for i in (FactorDescent(), ALL[0])
    )
    assert stiff.errors[0] > 100 * robust.errors[0]
    assert robust.errors[-1] < 0.01


def test_the_own_retraction_has_order_two_and_a_wrong_one_does_not():
    assert 1.9 < order_of_retraction().order < 2.1

    def transposed(f, xi):
        """The published bug: the core's other singular vectors."""
        dense = f.dense() - xi.dense(f)
        new = truncated_svd(dense, f.rank)
        return Factors(new.V[: new.U.shape[0]], new.S, new.U[: new.V.shape[0]])

    assert order_of_retraction(transposed, shape=(15, 15)).order < 0.1


def test_the_flow_solves_its_equation():
    flow = RotatingFlow(9, 7, torch.tensor([1.0, 0.5]), generator=torch.Generator().manual_seed(0))
    h = 1e-5
    derivative = (flow.at(0.3 + h) - flow.at(0.3 - h)) / (2 * h)
    torch.testing.assert_close(derivative, flow.slope(flow.at(0.3)), rtol=1e-8, atol=1e-8)
    sigma = torch.linalg.svdvals(flow.at(0.3))[:3]
    expected = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64) * torch.tensor(0.3).double().exp()
    torch.testing.assert_close(sigma, expected)


def test_a_slope_fits_a_power_law():
    fitted = Slope((0.1, 0.05, 0.01), tuple(3 * h**1.5 for h in (0.1, 0.05, 0.01)))
    assert fitted.order == pytest.approx(1.5)
    assert str(fitted).splitlines()[-1] == "order 1.50"
    assert Slope((0.1, 0.05), (0.0, 0.0)).order == float("inf")


def test_orthonormality_names_the_layer_that_lost_it():
    model = thin_layers()
    assert max(orthonormality(model).values()) < 1e-14
    with torch.no_grad():
        model[2].U.mul_(1.1)
    defects = orthonormality(model)
    assert defects["0"] < 1e-14
    assert defects["2"] == pytest.approx(0.21)


def test_stationarity_is_the_norm_of_the_projected_gradient_and_leaves_no_trace():
    model, (x, y) = adapter(), batch(0)
    y = torch.cat([y, y, y, y], dim=1)

    def loss_of(rows):
        return (model(x[rows]) - y[rows]).square().mean()

    model.U.grad = before = torch.ones_like(model.U)
    halves = [slice(0, 8), slice(8, 16)]
    got = stationarity(model, loss_of, halves)
    assert model.U.grad is before
    assert model.S.grad is None
    G = torch.zeros_like(model.base.weight)
    for rows in halves:
        out = model(x[rows]).detach().requires_grad_()
        (out - y[rows]).square().mean().backward()
        G += out.grad.mT @ x[rows] / 2
    f = model.factors()
    P, Q = f.U @ f.U.mT, f.V @ f.V.mT
    assert got[""] == pytest.approx(float((P @ G + G @ Q - P @ G @ Q).norm()))


def test_training_to_the_end_makes_a_model_stationary():
    model, (x, y) = thin_layers(), batch(0)
    optimizer = Optimizer(model, lr=0.02, rule=HeavyBall(), max_step=float("inf"))

    def loss_of(_):
        return (model(x) - y).square().mean()

    before = sum(stationarity(model, loss_of, [0]).values())
    for _ in range(2000):
        optimizer.zero_grad()
        loss_of(0).backward()
        optimizer.step()
    assert sum(stationarity(model, loss_of, [0]).values()) < 0.05 * before


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="smallest"):
        order_of_step(ALL[0], smallest=0.0)
    with pytest.raises(ValueError, match="two numbers of steps"):
        order_of_step(ALL[0], steps=[10])
    with pytest.raises(ValueError, match="one batch at least"):
        stationarity(thin_layers(), lambda b: b, [])
