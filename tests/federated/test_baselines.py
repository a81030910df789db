"""FedAvg and the average of factors: right and wrong by hand."""

import pytest
import torch
from torch import nn

import rankwise as rw
from federations import dense, factors, federation, heterogeneous, low_rank, square_error, weight
from rankwise.federated import FactorAverage, FedAvg, FeDLRT, run
from rankwise.nn import TuckerConv2d
from rankwise.numerics.factors import orthonormality_defect


def test_fedavg_is_the_mean_of_what_clients_train(draw):
    problem = heterogeneous(draw)
    model = dense(10, 8)
    run(*federation(model, FedAvg(lr=0.05, steps=3), problem.data), 1)
    expected, seen = torch.zeros(10, 8, dtype=torch.float64), 0
    for x, y in problem.data.values():
        W = torch.eye(10, 8, dtype=torch.float64)
        for _ in range(3):
            W = W - 0.05 * (x @ W.mT - y).mT @ x / len(x)
        expected, seen = expected + len(x) * W, seen + len(x)
    torch.testing.assert_close(weight(model), expected / seen, rtol=1e-12, atol=1e-12)


def test_fedavg_sends_each_number_once_in_either_direction(draw):
    problem = heterogeneous(draw)
    (record,) = run(*federation(dense(10, 8), FedAvg(), problem.data), 1)
    assert record.down == record.up == 4 * 10 * 8 * 8


def test_the_mean_of_factors_is_not_the_mean_of_matrices_where_fedlrt_is_right(draw):
    """Two clients with one entry each of a diagonal, the 2 x 2 example of the docstring.

    Each fits its own matrix in a round. Half of either is the common optimum.
    """
    x = torch.eye(2, dtype=torch.float64)
    data = {"a": (x, torch.diag(x[0])), "b": (x, torch.diag(x[1]))}
    optimum = x / 2
    start = factors(draw, 2, 2, 1)
    naive, right = rw.LowRankLinear(start), rw.LowRankLinear(start)
    run(*federation(naive, FactorAverage(lr=0.5, steps=100), data), 1)
    run(*federation(right, FeDLRT(lr=1.0, steps=50, rtol=1e-12), data), 2)
    assert (weight(right) - optimum).norm() < 1e-12
    # Of rank one, and half of the optimum is the most that a matrix of rank one can have.
    assert (weight(naive) - optimum).norm() >= 0.5 - 1e-12


def test_factor_average_trains_lora_factors_and_averages_each(draw):
    problem = heterogeneous(draw)
    model = low_rank(draw, 10, 8, 3)
    f = model.factors()._make(t.clone() for t in model.factors())
    means = [torch.zeros(10, 3, dtype=torch.float64), torch.zeros(3, 8, dtype=torch.float64)]
    count = len(problem.pooled()[0])
    for x, y in problem.data.values():
        B, A = f.U @ f.S, f.V.mT
        for _ in range(4):
            G = (x @ (B @ A).mT - y).mT @ x / len(x)
            B, A = B - 0.01 * G @ A.mT, A - 0.01 * B.mT @ G
        means = [M + len(x) / count * X for M, X in zip(means, (B, A), strict=True)]
    run(*federation(model, FactorAverage(lr=0.01, steps=4), problem.data), 1)
    torch.testing.assert_close(weight(model), means[0] @ means[1], rtol=1e-12, atol=1e-12)
    new = model.factors()
    assert max(orthonormality_defect(new.U), orthonormality_defect(new.V)) < 1e-13


def test_averaged_factors_stall_where_fedlrt_converges(draw):
    problem, start = heterogeneous(draw), factors(draw, 10, 8, 3)
    naive, right = rw.LowRankLinear(start), rw.LowRankLinear(start)
    # It diverges in the end; the rounds that are void leave it where it was.
    with pytest.warns(UserWarning, match="round 15 is void.*try a smaller `lr`"):
        run(*federation(naive, FactorAverage(lr=0.02, steps=10), problem.data), 30)
    run(*federation(right, FeDLRT(lr=0.1, steps=10, rtol=1e-8, max_rank=3), problem.data), 30)
    assert (weight(right) - problem.optimum).norm() < 1e-8
    assert (weight(naive) - problem.optimum).norm() > 0.1


def test_each_method_says_which_model_it_is_for(draw):
    data = {"a": heterogeneous(draw).data["client 0"]}
    with pytest.raises(ValueError, match="FeDLRT"):
        federation(low_rank(draw, 10, 8, 2), FedAvg(), data)
    for method in (FeDLRT(), FactorAverage()):
        with pytest.raises(ValueError, match="factorize_.*FedAvg"):
            federation(dense(10, 8), method, data)


def test_models_that_cannot_be_averaged_are_refused(draw):
    data = {"a": heterogeneous(draw).data["client 0"]}
    kernels = nn.Sequential(nn.Conv2d(4, 4, 3))
    rw.factorize_(kernels, rank=2, convolution=TuckerConv2d)
    with pytest.raises(ValueError, match="'0' is a TuckerConv2d.*LowRankConv2d"):
        federation(kernels, FeDLRT(), data)
    merged = nn.Sequential(nn.Linear(8, 10, dtype=torch.float64))
    rw.adapt_(merged, rank=2)
    rw.merge_(merged)
    with pytest.raises(ValueError, match="unmerge_"):
        federation(merged, FeDLRT(), data)
    with pytest.raises(ValueError, match="momentum=None"):
        counted = nn.Sequential(low_rank(draw, 10, 8, 2), nn.BatchNorm1d(10, momentum=None))
        federation(counted, FeDLRT(), data)
    with pytest.raises(ValueError, match="frozen"):
        federation(dense(10, 8).requires_grad_(False), FedAvg(), data)
    with pytest.raises(
        RuntimeError, match="client 'a' failed in phase 'train'.*`loss` must return"
    ):
        run(
            *federation(dense(10, 8), FedAvg(), data, lambda m, x, y: square_error(m, x, y).item()),
            1,
        )
