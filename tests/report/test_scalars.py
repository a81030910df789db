"""The numbers that all integrations log."""

import pytest
from torch import nn

from networks import batch, thin_layers
from rankwise.nn import TuckerConv2d
from rankwise.optim.optimizer import Optimizer
from rankwise.report.scalars import counts, scalars
from rankwise.surgery.factorize import factorize_


def test_they_are_those_of_layers_and_optimizer():
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2)
    assert scalars(optimizer) == {
        "mean_rank": 2.5,
        "parameters": 2 * (8 + 6 + 1) + 3 * (7 + 8 + 1),
        "skipped_steps": 0.0,
    }
    x, y = batch(0)
    (model(x) - y).square().mean().backward()
    assert scalars(optimizer)["gradient_norm"] == float(optimizer.gradient_norm()) > 0
    assert "gradient_norm" not in counts(optimizer)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.fill_(float("inf"))
    optimizer.step()
    assert scalars(optimizer)["skipped_steps"] == 1


def test_a_model_without_layers_has_no_rank_and_a_tucker_kernel_two():
    plain = nn.Linear(6, 2)
    optimizer = Optimizer(plain)
    assert scalars(optimizer) == {"parameters": 0.0, "skipped_steps": 0.0}
    model = nn.Sequential(nn.Conv2d(6, 8, 3))
    factorize_(model, rank=2, min_features=2, convolution=TuckerConv2d)
    layer = model[0]
    assert scalars(Optimizer(model))["mean_rank"] == pytest.approx(sum(layer.ranks) / 2)
