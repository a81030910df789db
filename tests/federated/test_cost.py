"""The formulas of a federated round beside the messages, memories and products of real ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.flop_counter import FlopCounterMode

import rankwise as rw
from rankwise.federated import (
    Client,
    FactorAverage,
    FedAvg,
    FeDLRT,
    FullCorrection,
    NoCorrection,
    RoundRecord,
    Samples,
    Server,
    SimplifiedCorrection,
    cost,
)
from rankwise.federated.client import CLOCK
from rankwise.federated.cost import RoundCost
from rankwise.federated.message import payload
from rankwise.federated.phase import Method
from rankwise.numerics.init import variance_preserving

WIDTHS = (9, 16, 7, 4)
METHODS = {
    "factors": (cost.factor_average, cost.fedavg),
    "none": (cost.fedlrt, cost.fedlrt_dense),
    "simplified": (cost.fedlrt_simplified, cost.fedlrt_simplified_dense),
    "full": (cost.fedlrt_full, cost.fedlrt_full_dense),
}
CORRECTIONS = {
    "none": NoCorrection(),
    "simplified": SimplifiedCorrection(),
    "full": FullCorrection(),
}
GROWING, SHRINKING = 1e-3, 0.5
"""Tolerances of the cut."""


def rule(method: str, rtol: float = GROWING, directions: torch.dtype | None = None) -> Method:
    if method == "factors":
        return FactorAverage(lr=0.1, steps=2)
    correction = CORRECTIONS[method]
    return FeDLRT(correction, lr=0.1, steps=2, rtol=rtol, direction_dtype=directions)


def network(ranks: tuple[int, ...], *, adapters: bool = False) -> nn.Sequential:
    """Low-rank layers of these ranks, with biases that train, and a head that does."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for n, m, rank in zip(WIDTHS[:-1], WIDTHS[1:], ranks, strict=True):
        factors = variance_preserving(m, n, rank, like=torch.empty(0))
        base = nn.Linear(n, m).requires_grad_(False) if adapters else None
        bias = None if adapters else torch.zeros(m)
        net.append(rw.LowRankLinear(factors, base=base, bias=bias)).append(nn.Tanh())
    return net.append(nn.Linear(WIDTHS[-1], 2))


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return mse_loss(model(x), y)


def federation(
    model: nn.Module, method: Method, names: str = "ab"
) -> tuple[Server, dict[str, Client]]:
    clients = {
        name: Client(name, model, method, loss, Samples(torch.randn(12, 9), torch.randn(12, 2)))
        for name in names
    }
    return Server(model, method, list(clients)), clients


def predicted(model: nn.Module, of_matrix, of_dense) -> RoundCost:
    layers = [layer for layer in model if isinstance(layer, rw.LowRankLinear)]
    factors = {id(p) for layer in layers for p in layer.factor_parameters()}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in factors]
    matrices = (of_matrix(*layer.factors().shape, layer.rank) for layer in layers)
    return sum(matrices, of_dense(sum(p.numel() for p in dense)))


def played(server: Server, clients: dict[str, Client], said: RoundCost) -> RoundRecord:
    """One round, in which the bytes of every message and memory are those that were said."""
    round, phases = server.open_round(), []
    while round.request is not None:
        request = round.request
        answers = [clients[name].answer(request) for name in round.participants]
        phases.append(request.phase)
        for reply in answers:
            sent = (payload(request.arrays), payload(reply.arrays))
            assert sent == said.phases[request.phase][:2]
        round.receive(answers)
    assert phases == list(said.phases)
    for client in clients.values():
        remembered = {n: t for n, t in client.memory.items() if n != CLOCK}
        assert payload(remembered) + payload(request.arrays) == said.client_memory
    record = server.close_round(round)
    assert (record.down, record.up) == (len(clients) * said.down, len(clients) * said.up)
    assert record.events == ()
    return record


@pytest.mark.parametrize(
    "ranks, rtol",
    [
        ((1, 1, 1), GROWING),
        ((2, 3, 2), GROWING),
        ((6, 5, 3), GROWING),
        ((6, 5, 3), SHRINKING),
        ((9, 7, 4), SHRINKING),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_messages_are_those_of_the_formulas_while_ranks_change(method, ranks, rtol):
    of_matrix, of_dense = METHODS[method]
    model = network(ranks)
    server, clients = federation(model, rule(method, rtol))
    seen = {ranks}
    for _ in range(2):
        record = played(server, clients, predicted(model, of_matrix, of_dense).in_bytes())
        seen.add(tuple(record.ranks.values()))
    assert (len(seen) > 1) == (method != "factors")


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_base_is_never_sent(method):
    of_matrix, of_dense = METHODS[method]
    model = network((2, 3, 2), adapters=True)
    server, clients = federation(model, rule(method))
    played(server, clients, predicted(model, of_matrix, of_dense).in_bytes())


@pytest.mark.parametrize("method", CORRECTIONS)
def test_directions_may_be_of_half_the_size(method):
    of_matrix, of_dense = METHODS[method]
    model = network((2, 5, 4))
    server, clients = federation(model, rule(method, directions=torch.bfloat16))
    said = predicted(model, of_matrix, of_dense)
    played(server, clients, said.in_bytes(4, direction_size=2))
    directions = sum(t.directions_down + t.directions_up for t in said.phases.values())
    halved = said.in_bytes(4, direction_size=2)
    assert 4 * (said.down + said.up) - (halved.down + halved.up) == 2 * directions


def test_dense_training_sends_the_model_both_ways():
    model = nn.Sequential(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2))
    server, clients = federation(model, FedAvg(steps=2))
    said = cost.fedavg(9 * 5) + cost.fedavg(5) + cost.fedavg(5 * 2) + cost.fedavg(2)
    played(server, clients, said.in_bytes())


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_totals_are_those_of_the_paper_where_both_bases_can_double(rank):
    """Schotthoefer and Laiu count `6 n r` and multiples of `r^2` for a square matrix."""
    n = 10
    plain, simplified, full = (
        of(n, n, rank) for of in (cost.fedlrt, cost.fedlrt_simplified, cost.fedlrt_full)
    )
    assert plain.down + plain.up == 6 * n * rank + 5 * rank**2
    assert simplified.down + simplified.up == 6 * n * rank + 7 * rank**2
    assert full.down + full.up == 6 * n * rank + 13 * rank**2
    assert [len(c.phases) for c in (plain, simplified, full)] == [2, 2, 3]


def test_at_full_rank_no_basis_grows():
    assert cost.grown(4, 7, 4) == (4, 7)
    assert cost.new_columns(4, 7, 4) == 3 * 7
    assert cost.new_columns(4, 4, 4) == 0
    assert cost.new_columns(40, 70, 4) == 4 * (40 + 70)


def test_the_server_holds_an_answer_of_each_participant():
    said = cost.fedlrt(20, 30, 2)
    assert said.server_memory(0) == said.down
    assert said.server_memory(101) - said.server_memory(100) == 2 * (20 + 30)


def test_costs_of_different_methods_do_not_add_up():
    with pytest.raises(ValueError, match="phases gradient, train and train"):
        cost.fedlrt(4, 4, 1) + cost.fedavg(16)


def flops(model: nn.Module, n: int, rows: int) -> int:
    x = torch.randn(rows, n, requires_grad=True)
    # Torch counts `addmm`, and not the one that writes into what is there.
    own = {torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        model(x).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("m, n, rank", [(20, 12, 3), (12, 20, 1), (7, 7, 7), (5, 9, 5)])
def test_products_are_those_of_the_formulas(m, n, rank):
    rows = 11
    dense = nn.Linear(n, m, bias=False)
    assert flops(dense, n, rows) == cost.dense_flops(m, n, rows)
    assert flops(dense.requires_grad_(False), n, rows) == cost.frozen_flops(m, n, rows)
    two = nn.Sequential(nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=False))
    assert flops(two, n, rows) == cost.two_factor_flops(m, n, rank, rows)
    whole = rw.LowRankLinear(variance_preserving(m, n, rank, like=torch.empty(0)))
    assert flops(whole, n, rows) == cost.tangent_flops(m, n, rank, rows)
    adapted = nn.Sequential(nn.Linear(n, m, bias=False))
    rw.adapt_(adapted, rank=rank)
    assert flops(adapted, n, rows) == cost.frozen_flops(m, n, rows) + cost.tangent_flops(
        m, n, rank, rows
    )


@pytest.mark.parametrize("m, n, rank", [(20, 12, 3), (6, 20, 2), (20, 6, 3)])
def test_products_of_a_local_step_are_those_of_the_formula(m, n, rank):
    rows = 11
    p, q = cost.grown(m, n, rank)
    assert p == q
    layer = rw.LowRankLinear(variance_preserving(m, n, p, like=torch.empty(0)))
    layer.U.requires_grad_(False)
    layer.V.requires_grad_(False)
    assert flops(layer, n, rows) == cost.core_flops(m, n, rank, rows)
