"""Clients believe no request that does not fit."""

from dataclasses import replace

import pytest
import torch

from federations import answers, bits, dense, federation, heterogeneous, low_rank, square_error
from rankwise.federated import Client, FedAvg, FeDLRT, Request, Samples


@pytest.fixture
def scene(draw):
    problem = heterogeneous(draw)
    return federation(low_rank(draw, 10, 8, 3), FeDLRT(lr=0.05, steps=2, rtol=1e-8), problem.data)


def changed(request, **arrays):
    return replace(request, arrays=request.arrays | arrays)


WRONG = {
    "not a request": (lambda r: {"phase": "gradient"}, "Request"),
    "unknown phase": (lambda r: replace(r, phase="vote"), "gradient, correction, train"),
    "missing array": (lambda r: replace(r, arrays={"U": r.arrays["U"]}), "'S' is missing"),
    "no arrays": (lambda r: replace(r, arrays=None), "dict"),
    "another shape": (lambda r: changed(r, U=r.arrays["U"][:-1]), "'U' must be"),
    "ranks that differ": (lambda r: changed(r, V=r.arrays["V"][:, :2]), "'V' must be"),
    "a rank too large": (lambda r: changed(r, S=torch.ones(9, 9).double()), "must be"),
    "no core": (lambda r: changed(r, S=torch.ones(3).double()), "must be"),
    "another type": (lambda r: changed(r, S=r.arrays["S"].float()), "float32"),
    "NaN": (lambda r: changed(r, S=r.arrays["S"] * float("nan")), "NaN"),
    "no bases": (lambda r: changed(r, U=2 * r.arrays["U"]), "'U' are not orthonormal"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_request_that_does_not_fit_is_refused_and_changes_nothing(scene, kind):
    spoil, text = WRONG[kind]
    server, clients = scene
    client, before = clients["client 0"], bits(server.model.factors()._asdict())
    with pytest.raises((ValueError, TypeError), match=text):
        client.answer(spoil(server.open_round().request))
    assert client.memory == {}
    assert bits(server.model.factors()._asdict()) == before


def test_phases_come_in_order(scene):
    server, clients = scene
    first, client = server.open_round(), clients["client 0"]
    for phase in ("correction", "train"):
        with pytest.raises(ValueError, match="has not answered"):
            client.answer(Request(0, phase, {}))
    first.receive(answers(first, clients))
    with pytest.raises(ValueError, match="'correction' of round 1 and has not answered 'gradient'"):
        client.answer(replace(first.request, round=1))
    second = first.request
    first.receive(answers(first, clients))
    with pytest.raises(ValueError, match="'G' must be"):
        client.answer(changed(first.request, G=torch.ones(3, 3).double()))
    # Asked again, on the way lost, it says the same again.
    replies = [client.answer(r) for r in (first.request, first.request)]
    assert bits(replies[0].arrays) == bits(replies[1].arrays)
    with pytest.raises(ValueError, match="'K' is unexpected|is missing"):
        client.answer(replace(second, arrays={"K": torch.ones(1)}))


def test_a_model_is_left_as_the_round_found_it(scene):
    server, clients = scene
    model, before = server.model, bits(server.model.factors()._asdict())
    round = server.open_round()
    while round.request is not None:
        round.receive(answers(round, clients))
        assert bits(model.factors()._asdict()) == before
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_generators_are_left_as_they_were(scene):
    server, clients = scene
    state = torch.get_rng_state()
    clients["client 0"].answer(server.open_round().request)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    "place, value, error",
    [(0, "", ValueError), (0, 3, ValueError), (1, "net", TypeError), (2, "FeDLRT", TypeError),
     (3, None, TypeError), (4, [1, 2], TypeError)],
)  # fmt: skip
def test_clients_that_cannot_be_meant_are_refused(draw, place, value, error):
    given = ["a", low_rank(draw, 5, 4, 2), FeDLRT(), square_error, Samples(torch.ones(3, 4))]
    given[place] = value
    with pytest.raises(error, match=["name", "model", "method", "loss", "data"][place]):
        Client(*given)


def test_dense_models_have_no_memory_to_keep(draw):
    server, clients = federation(dense(10, 8), FedAvg(), heterogeneous(draw).data)
    clients["client 0"].answer(server.open_round().request)
    assert clients["client 0"].memory == {}
