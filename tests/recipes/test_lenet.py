"""LeNet-5 in its forms: the same function where it should be, the numbers that are reported."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import rankwise as rw
from rankwise.recipes.lenet import (
    DENSE_WEIGHTS,
    MAPS,
    SHAPES,
    dense_lenet,
    low_rank_lenet,
    truncated_lenet,
    weights,
)
from rankwise.recipes.mnist import mnist

FULL = [min(shape) for shape in SHAPES]


def images(rows: int = 8) -> torch.Tensor:
    return torch.randn(rows, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_its_weights_are_those_of_the_papers():
    dense = dense_lenet(0)
    assert sum(dense[k].weight.numel() for k in MAPS) == DENSE_WEIGHTS == 430_500
    assert [tuple(dense[k].weight.flatten(1).shape) for k in MAPS] == list(SHAPES)


def test_cut_to_full_rank_it_is_the_dense_network():
    dense = dense_lenet(0)
    torch.testing.assert_close(truncated_lenet(dense, FULL)(images()), dense(images()))


def test_the_error_of_a_cut_falls_with_the_rank():
    dense, x = dense_lenet(0), images(64)
    errors = [
        float((truncated_lenet(dense, [min(r, m) for m in FULL])(x) - dense(x)).norm().detach())
        for r in (40, 100, 300, 500)
    ]
    assert all(b < 0.9 * a for a, b in zip(errors, errors[1:], strict=False))


def test_a_network_counts_the_smaller_of_its_factors_and_its_weight():
    assert weights([1, 1, 1, 1]) == 45 + 550 + 1300 + 510
    assert weights(FULL) == DENSE_WEIGHTS
    assert weights([11, 45, 307, 9]) < DENSE_WEIGHTS <= weights([12, 46, 308, 10])


def test_a_start_of_low_rank_has_the_signal_of_a_dense_start():
    """Of He's start; torch's own is smaller."""
    dense, x = dense_lenet(0), images(256)
    for place in MAPS[:3]:
        torch.nn.init.kaiming_normal_(dense[place].weight)
    sizes = [
        float(model[:9](x).detach().square().mean().sqrt())
        for model in (dense, low_rank_lenet([10, 20, 100, 9], 0))
    ]
    assert 0.5 < sizes[1] / sizes[0] < 2.0


def test_it_learns_within_a_budget():
    model = low_rank_lenet([6, 6, 6, 6], 0)
    rule = rw.Budget(parameters=9000, every=5)
    optimizer = rw.Optimizer(model, lr=0.05, max_step=0.03, rank_rule=rule)
    x, y = images(32), torch.arange(32) % 10
    losses = []
    for _ in range(30):
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert weights([layer.rank for _, layer in optimizer.layers]) <= 9000


def test_mnist_is_whole():
    try:
        data = mnist()
    except RuntimeError as error:
        pytest.skip(f"the data could not be fetched: {error}")
    assert data.images.shape == (60_000, 1, 28, 28)
    assert data.held_out_images.shape == (10_000, 1, 28, 28)
    assert data.digits[:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(float(data.images.mean())) < 1e-4
