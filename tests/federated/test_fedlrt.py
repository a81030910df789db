"""FeDLRT against dense references, in float64."""

import pytest
import torch
from torch import nn

from federations import (
    answers,
    dense,
    factors,
    federation,
    heterogeneous,
    low_rank,
    rand,
    square_error,
    weight,
)
from rankwise.federated import (
    FedAvg,
    FeDLRT,
    FullCorrection,
    NoCorrection,
    Samples,
    SimplifiedCorrection,
    run,
)
from rankwise.nn.linear import LowRankLinear
from rankwise.numerics.factors import orthonormality_defect

CORRECTIONS = [NoCorrection(), SimplifiedCorrection(), FullCorrection()]
EVERYTHING = {"rtol": 0.0}


def bases(W, gradient, f):
    """Orthonormal bases of `span[U, G V]` and `span[V, G^T U]`, by SVD."""
    G = gradient(W)
    wide = torch.cat([f.U, G @ f.V], 1), torch.cat([f.V, G.mT @ f.U], 1)
    sized = [(X, min(X.shape)) for X in wide]
    return [torch.linalg.svd(X, full_matrices=False).U[:, :k] for X, k in sized]


def central_round(f, gradient, lr, steps):
    """Steps of gradient descent between bases grown once, on dense matrices."""
    W = f.dense()
    P, Q = (B @ B.mT for B in bases(W, gradient, f))
    for _ in range(steps):
        W = W - lr * P @ gradient(W) @ Q
    return W


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("m, n, rank", [(10, 8, 3), (3, 10, 2), (10, 3, 2), (6, 5, 1), (5, 4, 4)])
def test_identical_clients_are_centralised_training(draw, correction, m, n, rank):
    problem = heterogeneous(draw, m, n, rank=2, counts=(30,))
    data = {name: problem.data["client 0"] for name in "abc"}
    model = low_rank(draw, m, n, rank)
    before = model.factors()._make(t.clone() for t in model.factors())
    expected = central_round(before, problem.gradient, lr=0.1, steps=4)
    method = FeDLRT(correction, lr=0.1, steps=4, **EVERYTHING)
    server, clients = federation(model, method, data)
    run(server, clients, 1)
    torch.testing.assert_close(weight(model), expected, rtol=1e-12, atol=1e-12)


def test_a_square_basis_leaves_gradient_descent_on_the_whole_matrix(draw):
    problem = heterogeneous(draw, 5, 4, rank=2, counts=(30,))
    model = low_rank(draw, 5, 4, rank=4)
    W = weight(model)
    for _ in range(3):
        W = W - 0.1 * problem.gradient(W)
    # (5, 4) at rank 4: V is square, and U has all directions of G V.
    server, clients = federation(model, FeDLRT(lr=0.1, steps=3, **EVERYTHING), problem.data)
    run(server, clients, 1)
    assert server.ranks == {"": 4}
    torch.testing.assert_close(weight(model), W, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: type(c).__name__)
def test_one_step_of_many_clients_is_one_on_their_pooled_data(draw, correction):
    problem = heterogeneous(draw)
    model, method = low_rank(draw, 10, 8, 3), FeDLRT(correction, lr=0.1, steps=1, **EVERYTHING)
    start = model.factors()._make(t.clone() for t in model.factors())
    run(*federation(model, method, problem.data), 1)
    alone = LowRankLinear(start)
    run(*federation(alone, method, {"all": problem.pooled()}), 1)
    torch.testing.assert_close(weight(model), weight(alone), rtol=1e-12, atol=1e-12)
    expected = central_round(start, problem.gradient, lr=0.1, steps=1)
    torch.testing.assert_close(weight(model), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, -3.0])
def test_an_adapter_steps_its_own_matrix_beside_a_frozen_base(draw, scale):
    problem = heterogeneous(draw)
    base = dense(10, 8)
    with torch.no_grad():
        base.weight.copy_(rand(draw, 10, 8))
    model = LowRankLinear(factors(draw, 10, 8, 2), base=base, scale=scale)
    f = model.factors()._make(t.clone() for t in model.factors())

    def gradient(X):
        return scale * problem.gradient(base.weight.detach() + scale * X)

    expected = central_round(f, gradient, lr=0.02, steps=3)
    same = {name: problem.pooled() for name in "ab"}
    run(*federation(model, FeDLRT(lr=0.02, steps=3, **EVERYTHING), same), 1)
    torch.testing.assert_close(weight(model), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correction", CORRECTIONS[1:], ids=lambda c: type(c).__name__)
def test_the_corrections_of_all_clients_add_up_to_zero(draw, correction):
    problem = heterogeneous(draw)
    model = nn.Sequential(low_rank(draw, 10, 8, 3), nn.Tanh(), dense(10, 10))
    server, clients = federation(model, FeDLRT(correction, steps=1), problem.data)
    round = server.open_round()
    while round.request.phase != "train":
        round.receive(answers(round, clients))
    names = [n for n in round.request.arrays if n.endswith(".G")]
    assert sorted(names) == ["0.G", "2.weight.G"]
    for name in names:
        total, size = 0.0, 0.0
        for client in clients.values():
            shift = round.request.arrays[name] - client.memory[f"own/{name}"]
            total, size = total + len(client.data) * shift, size + shift.norm()
        assert size > 1e-2
        assert total.norm() < 1e-12 * len(problem.pooled()[0]) * size


def distances(model, method, problem, rounds, every=10):
    """From the optimum, after each `every` rounds."""
    server, clients = federation(model, method, problem.data)
    found = []
    for _ in range(rounds // every):
        run(server, clients, every)
        found.append(float((weight(model) - problem.optimum).norm()))
    return found


def test_only_the_full_correction_finds_the_optimum_of_clients_that_disagree(draw):
    problem, start = heterogeneous(draw), factors(draw, 10, 8, 3)
    options = {"lr": 0.1, "steps": 10, "rtol": 1e-10}
    full = distances(LowRankLinear(start), FeDLRT(**options), problem, 40)
    simplified, none = (
        distances(LowRankLinear(start), FeDLRT(c, **options), problem, 20)[-1]
        for c in (SimplifiedCorrection(), NoCorrection())
    )
    fedavg = distances(dense(10, 8), FedAvg(lr=0.1, steps=10), problem, 20)[-1]
    # Linear: three decimals every ten rounds, until rounding.
    assert all(later < earlier / 300 for earlier, later in zip(full, full[1:], strict=False))
    assert full[-1] < 1e-10
    # Between bases that hold all directions both step as the dense model does, and stall with it.
    assert none == pytest.approx(fedavg, rel=1e-3)
    assert none > 1.0
    assert 0.1 < simplified < none / 3


def test_dense_parameters_are_corrected_along(draw):
    """Offsets by client: the common optimum has a bias that no client has."""
    inputs = [rand(draw, 20 + 10 * c, 6) * (0.5 + c / 4) for c in range(3)]
    W, offsets = rand(draw, 5, 6), [rand(draw, 5) for _ in inputs]
    data = {str(c): (x, x @ W.mT + b) for c, (x, b) in enumerate(zip(inputs, offsets, strict=True))}
    x, y = (torch.cat(parts) for parts in zip(*data.values(), strict=True))
    rows = torch.cat([x, x.new_ones(len(x), 1)], 1)
    optimum = torch.linalg.lstsq(rows, y).solution.mT
    model = LowRankLinear(factors(draw, 5, 6, 3), bias=rand(draw, 5))
    run(*federation(model, FeDLRT(lr=0.1, steps=10, rtol=1e-12), data), 60)
    found = torch.cat([weight(model), model.bias.detach()[:, None]], 1)
    assert (found - optimum).norm() < 1e-8


def test_the_common_loss_falls_in_every_round(draw):
    problem = heterogeneous(draw)
    model = low_rank(draw, 10, 8, 3)
    server, clients = federation(model, FeDLRT(lr=0.02, steps=5, rtol=1e-8), problem.data)
    x, y = problem.pooled()
    losses = []
    for _ in range(12):
        losses.append(float(square_error(model, x, y).detach()))
        run(server, clients, 1)
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))


@pytest.mark.parametrize("start", [1, 8])
def test_the_rank_of_the_optimum_is_found_from_below_and_above(draw, start):
    problem = heterogeneous(draw, rank=3)
    model = low_rank(draw, 10, 8, start)
    server, clients = federation(model, FeDLRT(lr=0.1, steps=10, rtol=1e-3), problem.data)
    records = run(server, clients, 25)
    assert records[-1].ranks == {"": 3}
    assert (weight(model) - problem.optimum).norm() < 1e-2 * problem.optimum.norm()


def test_ranks_stay_within_their_bounds(draw):
    problem = heterogeneous(draw)
    model = low_rank(draw, 10, 8, 4)
    method = FeDLRT(lr=0.05, steps=2, rtol=0.99, min_rank=2, max_rank=5)
    server, clients = federation(model, method, problem.data)
    assert run(server, clients, 1)[0].ranks == {"": 2}
    server, clients = federation(model, FeDLRT(lr=0.05, rtol=0.0, max_rank=5), problem.data)
    assert [r.ranks[""] for r in run(server, clients, 3)] == [4, 5, 5]


def test_a_core_of_zeros_is_no_dead_start(draw):
    problem = heterogeneous(draw)
    f = factors(draw, 10, 8, 3, size=0.0)
    model = LowRankLinear(f)
    expected = central_round(f, problem.gradient, lr=0.05, steps=1)
    run(*federation(model, FeDLRT(lr=0.05, steps=1, rtol=0.0), problem.data), 1)
    assert weight(model).norm() > 0.1
    torch.testing.assert_close(weight(model), expected, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_lower_rank_leaves_bases_orthonormal(draw):
    x = rand(draw, 30, 1) @ rand(draw, 1, 8)
    data = {name: (x, x @ rand(draw, 10, 8).mT) for name in "ab"}
    model = low_rank(draw, 10, 8, 3, size=0.0)
    run(*federation(model, FeDLRT(lr=0.01, steps=3, rtol=0.0, max_rank=6), data), 5)
    f = model.factors()
    assert max(orthonormality_defect(f.U), orthonormality_defect(f.V)) < 1e-13
    assert torch.linalg.matrix_rank(f.S, rtol=1e-10) == 1


def test_bases_stay_orthonormal_in_float32_over_many_rounds(draw):
    problem = heterogeneous(draw)
    model = low_rank(draw, 10, 8, 3).float()
    data = {"all": [t.float() for t in problem.pooled()]}
    run(*federation(model, FeDLRT(NoCorrection(), lr=0.05, steps=1, rtol=0.05), data), 100)
    f = model.factors()
    assert max(orthonormality_defect(f.U), orthonormality_defect(f.V)) < 2e-6


def test_directions_in_bfloat16_cost_bytes_and_no_accuracy(draw):
    problem, start = heterogeneous(draw), factors(draw, 10, 8, 3)
    options = {"lr": 0.1, "steps": 10, "rtol": 1e-10}
    model = LowRankLinear(start)
    half = FeDLRT(**options, direction_dtype=torch.bfloat16)
    server, clients = federation(model, half, problem.data)
    short = run(server, clients, 1)[0]
    run(server, clients, 29)
    assert (weight(model) - problem.optimum).norm() < 1e-8
    (full,) = run(*federation(LowRankLinear(start), FeDLRT(**options), problem.data), 1)
    assert full.up - short.up == 4 * 3 * (10 + 8) * (8 - 2)
    assert full.down - short.down == 4 * 3 * (10 + 8) * (8 - 2)


def test_a_network_of_several_layers_has_ranks_by_layer(draw):
    inner = [
        low_rank(draw, 12, 8, 2),
        nn.ReLU(),
        low_rank(draw, 9, 12, 4),
        dense(3, 9),
    ]
    model = nn.Sequential(*inner)
    x = rand(draw, 60, 8)
    data = {
        str(c): (x[20 * c : 20 * (c + 1)], x[20 * c : 20 * (c + 1), :3].sin()) for c in range(3)
    }
    server, clients = federation(model, FeDLRT(lr=0.1, steps=10, rtol=0.05), data)
    before = float(square_error(model, x, x[:, :3].sin()).detach())
    records = run(server, clients, 15)
    assert set(records[-1].ranks) == {"0", "2"}
    assert records[-1].ranks != {"0": 2, "2": 4}
    assert float(square_error(model, x, x[:, :3].sin()).detach()) < before / 2


def test_a_schedule_gives_the_rate_of_each_round(draw):
    problem, start = heterogeneous(draw), factors(draw, 10, 8, 3)
    scheduled, changed = LowRankLinear(start), LowRankLinear(start)
    options = {"steps": 3, "rtol": 1e-6}
    rates = FeDLRT(lr=lambda round: 0.05 / (1 + round), **options)
    run(*federation(scheduled, rates, problem.data), 2)
    run(*federation(changed, FeDLRT(lr=0.05, **options), problem.data), 1)
    run(*federation(changed, FeDLRT(lr=0.025, **options), problem.data), 1)
    assert weight(scheduled).equal(weight(changed))


def test_batches_for_the_gradient_are_those_of_the_correction(draw):
    """So that corrections are differences of gradients at one point and on the same samples."""
    problem = heterogeneous(draw)
    model = low_rank(draw, 10, 8, 3)
    data = {n: Samples(*t, batch_size=5) for n, t in problem.data.items()}
    server, clients = federation(model, FeDLRT(steps=1, gradient_batches=2), data)
    round = server.open_round()
    round.receive(answers(round, clients))
    replies = {r.client: r for r in answers(round, clients)}
    f = model.factors()
    x, y = zip(*clients["client 1"].data.batches(2, 0, "G"), strict=True)
    x, y = torch.cat(x), torch.cat(y)
    G = (x @ f.dense().mT - y).mT @ x / len(x)
    assert len(x) == 10
    block = replies["client 1"].arrays["G"][:3, :3]
    torch.testing.assert_close(block, f.U.mT @ G @ f.V, rtol=1e-12, atol=1e-12)


def test_a_gradient_takes_no_more_batches_than_there_are(draw):
    """More would be samples seen again: the mean over all is exact, and costs less."""
    problem, seen = heterogeneous(draw), []

    def counted(model, x, y):
        seen.append(len(x))
        return square_error(model, x, y)

    data = {"all": Samples(*problem.pooled(), batch_size=50)}
    ends = []
    start = factors(draw, 10, 8, 3)
    for count in (1000, 3, None):
        model, method = LowRankLinear(start), FeDLRT(lr=0.05, steps=1, gradient_batches=count)
        run(*federation(model, method, data, counted), 1)
        ends.append(weight(model))
    assert seen == 3 * [50, 50, 40, 50, 50, 40, 50]
    assert ends[0].equal(ends[2]) and ends[1].equal(ends[2])


def test_running_statistics_are_averaged_and_unused_gradients_are_zero(draw):
    norm = nn.BatchNorm1d(6, affine=False).double()
    model = nn.Sequential(low_rank(draw, 6, 8, 2), norm)
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    x = rand(draw, 40, 8)
    data = {"a": (x[:10], x[:10, :6]), "b": (x[10:], x[10:, :6])}
    before = model[0](x).detach()
    run(*federation(model, FeDLRT(lr=1e-9, steps=1), data), 1)
    parts = [0.1 * part.mean(0) for part in (before[:10], before[10:])]
    torch.testing.assert_close(norm.running_mean, 0.25 * parts[0] + 0.75 * parts[1])
    assert model.unused.equal(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"correction": FullCorrection}, TypeError, "correction"),
        ({"correction": "full"}, TypeError, "correction"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 1.5}, TypeError, "steps"),
        ({"rtol": 1.0}, ValueError, "rtol"),
        ({"min_rank": 0}, ValueError, "min_rank"),
        ({"min_rank": 3, "max_rank": 2}, ValueError, "max_rank"),
        ({"gradient_batches": 0}, ValueError, "gradient_batches"),
        ({"direction_dtype": torch.float16}, ValueError, "direction_dtype"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        FeDLRT(**options)
