"""Sampling, checkpoints, and servers that are killed."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rankwise as rw
from federations import answers, bits, dense, factors, federation, heterogeneous, low_rank
from rankwise.federated import Client, FactorAverage, FedAvg, FeDLRT, Samples, Server, run
from rankwise.nn.linear import LowRankLinear


@pytest.fixture
def scene(draw):
    """Makes the same network, method and clients with mini-batches each time."""
    problem, first = heterogeneous(draw), factors(draw, 10, 8, 3)
    head = torch.randn(10, 10, generator=draw)

    def make(**options):
        last = nn.Linear(10, 10)
        with torch.no_grad():
            last.weight.copy_(head)
            last.bias.zero_()
        model = nn.Sequential(LowRankLinear(first), nn.Dropout(0.2), nn.ReLU(), last).double()
        data = {n: Samples(*t, batch_size=8) for n, t in problem.data.items()}
        method = FeDLRT(lr=0.02, steps=3, rtol=0.05)
        return federation(model, method, data, participation=0.75, seed=3, **options)

    return make


def test_a_killed_server_goes_on_bit_for_bit(scene, tmp_path):
    whole, clients = scene()
    expected = run(whole, clients, 5)
    killed, others = scene()
    first = run(killed, others, 2)
    killed.save(tmp_path / "server.safetensors")
    # Killed in the middle of a round: clients have begun it, the server forgets it.
    round = killed.open_round()
    round.receive(answers(round, others))
    new, _ = scene()
    new.load(tmp_path / "server.safetensors")
    assert new.number == 2
    assert first + run(new, others, 3) == expected
    assert bits(new.state) == bits(whole.state)


def test_killed_clients_come_back_with_their_memory_only(scene):
    """As engines have it that make clients anew for every message."""
    whole, clients = scene()
    run(whole, clients, 2)
    server, others = scene()
    memories = {name: {} for name in others}
    for _ in range(2):
        round = server.open_round()
        while round.request is not None:
            replies = []
            for name in round.participants:
                _, fresh = scene()
                fresh[name].memory = memories[name]
                replies.append(fresh[name].answer(round.request))
                memories[name] = fresh[name].memory
            round.receive(replies)
        server.close_round(round)
    assert bits(server.state) == bits(whole.state)


def test_participants_depend_on_seed_and_round_alone(draw):
    model, names = low_rank(draw, 10, 8, 2), [f"c{i}" for i in range(10)]

    def drawn(seed, names=names):
        server = Server(model, FeDLRT(), names, participation=0.3, seed=seed)
        rounds = []
        for server.number in range(20):
            rounds.append(server.open_round().participants)
        return rounds

    assert drawn(0) == drawn(0, names[::-1])
    assert drawn(0) != drawn(1)
    assert {len(p) for p in drawn(0)} == {3}
    assert len(set(drawn(0))) > 10
    assert {c for p in drawn(0) for c in p} == set(names)


def test_partial_participation_moves_towards_the_optimum(draw):
    problem = heterogeneous(draw)
    model = low_rank(draw, 10, 8, 3)
    server, clients = federation(
        model, FeDLRT(lr=0.1, steps=5, rtol=1e-3), problem.data, participation=0.5
    )
    start = (model.factors().dense() - problem.optimum).norm()
    records = run(server, clients, 10)
    assert {len(r.participants) for r in records} == {2}
    assert len({r.participants for r in records}) > 1
    assert (model.factors().dense() - problem.optimum).norm() < start


def test_the_server_keeps_its_state_while_clients_use_the_model(draw):
    problem = heterogeneous(draw)
    start = factors(draw, 10, 8, 3)
    shared = LowRankLinear(start)
    method = FeDLRT(lr=0.05, steps=3, rtol=1e-6)
    server, clients = federation(shared, method, problem.data)
    before = bits(server.state)
    round = server.open_round()
    round.receive(answers(round, clients))
    assert bits(server.state) == before
    assert bits(shared.factors()._asdict()) == before
    apart = Server(LowRankLinear(start), method, list(problem.data))
    own = {
        n: Client(n, low_rank(draw, 10, 8, 1 + i), method, clients[n].loss, Samples(*t))
        for i, (n, t) in enumerate(problem.data.items())
    }
    run(apart, own, 2)
    run(server, clients, 2)
    assert bits(apart.state) == bits(server.state)


def test_a_dense_model_is_saved_too(draw, tmp_path):
    data = heterogeneous(draw).data
    server, clients = federation(dense(10, 8), FedAvg(lr=0.05), data)
    run(server, clients, 2)
    server.save(tmp_path / "s.safetensors")
    new, _ = federation(dense(10, 8), FedAvg(lr=0.05), data)
    new.load(tmp_path / "s.safetensors")
    assert (bits(new.state), new.number) == (bits(server.state), 2)
    assert new.model.weight.equal(server.model.weight)


def test_what_goes_on_otherwise_is_told_and_progress_comes_back(draw, tmp_path):
    data, path = heterogeneous(draw).data, tmp_path / "s.safetensors"
    server, _ = federation(dense(10, 8), FedAvg(lr=0.05), data)
    server.save(path, {"seen": [1, 2.5, "x"]})
    names = list(server.clients)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = Server(dense(10, 8), FedAvg(lr=0.5), names[::-1])
        assert same.load(path) == {"seen": [1, 2.5, "x"]}
    for change, told in (
        ({"seed": 1}, "other seed:"),
        ({"participation": 1 / len(names)}, "other participants of a round:"),
        ({"clients": [*names, "new"]}, "other clients and participants of a round:"),
    ):
        other = Server(dense(10, 8), FedAvg(), **({"clients": names} | change))
        with pytest.warns(RuntimeWarning, match=told):
            other.load(path)
        assert bits(other.state) == bits(server.state)
    with pytest.raises(TypeError, match="`progress` must be what JSON can hold"):
        server.save(path, {"seen": {1}})
    assert same.load(path) == {"seen": [1, 2.5, "x"]}


def test_a_file_of_another_model_changes_nothing(draw, tmp_path):
    data, path = heterogeneous(draw).data, tmp_path / "s.safetensors"
    server, clients = federation(low_rank(draw, 10, 8, 3), FeDLRT(), data)
    before = bits(server.state)
    with pytest.raises(FileNotFoundError):
        server.load(path)
    other, _ = federation(low_rank(draw, 10, 9, 3), FeDLRT(), data)
    other.save(path)
    with pytest.raises(ValueError, match="shape"):
        server.load(path)
    rw.save(server.model, path)
    with pytest.raises(ValueError, match="rankwise-adapter"):
        server.load(path)
    server.save(path)
    tensors = load_file(path)
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
        del metadata["checksum"]
    broken = (tensors | {"U": tensors["U"] * float("nan")}, {"round": 0})
    for spoilt, wrong in (broken, (tensors, {"round": -1}), (tensors, {"model": [1]})):
        content = json.loads(metadata["rankwise"]) | wrong
        save_file(spoilt, path, metadata | {"rankwise": json.dumps(content)})
        with pytest.raises(ValueError, match="finite|round|'model' of the metadata"):
            server.load(path)
    assert bits(server.state) == before
    assert server.number == 0


def test_adapters_go_on_on_their_own_base_only(draw, tmp_path):
    def adapted(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 10, dtype=torch.float64))
        rw.adapt_(model, rank=2)
        return model

    data = heterogeneous(draw).data
    server, clients = federation(adapted(0), FeDLRT(lr=0.05), data)
    run(server, clients, 1)
    server.save(tmp_path / "s.safetensors")
    same, _ = federation(adapted(0), FeDLRT(), data)
    same.load(tmp_path / "s.safetensors")
    assert bits(same.state) == bits(server.state)
    other, _ = federation(adapted(1), FeDLRT(), data)
    with pytest.raises(ValueError, match="base"):
        other.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    "options, error",
    [
        ({"clients": []}, ValueError),
        ({"clients": ["a", "a"]}, ValueError),
        ({"clients": "abc"}, TypeError),
        ({"clients": [1, 2]}, TypeError),
        ({"method": FeDLRT}, TypeError),
        ({"participation": 0.0}, ValueError),
        ({"participation": 1.5}, ValueError),
        ({"quorum": 0}, ValueError),
        ({"quorum": 3}, ValueError),
        ({"quorum": 2, "participation": 0.5}, ValueError),
        ({"bounds": 3.0}, TypeError),
        ({"seed": 0.5}, TypeError),
    ],
)
def test_servers_that_cannot_be_meant_are_refused(draw, options, error):
    given = {"method": FeDLRT(), "clients": ["a", "b"]} | options
    with pytest.raises(error, match=list(options)[0]):
        Server(low_rank(draw, 5, 4, 2), **given)


def test_running_tells_each_round_and_drops_who_raises(draw):
    data, told = heterogeneous(draw).data, []
    server, clients = federation(low_rank(draw, 10, 8, 2), FeDLRT(lr=0.05), data)

    class Gone(Client):
        def answer(self, request):
            raise TimeoutError("no sign of life")

    lost = clients["client 1"]
    clients["client 1"] = Gone(lost.name, lost.model, lost.method, lost.loss, lost.data)
    records = run(server, clients, 3, watch=told.append)
    assert told == records
    assert [r.number for r in records] == [0, 1, 2]
    assert [str(e) for r in records for e in r.events] == [
        "client 1 dropped in gradient: TimeoutError: no sign of life"
    ] * 3
    with pytest.raises(ValueError, match="those of the server"):
        run(server, {"client 0": clients["client 0"]}, 1)
    with pytest.raises(ValueError, match=r"clients\['client 0'\].* has the name 'client 2'"):
        run(server, clients | {"client 0": clients["client 2"]}, 1)
    with pytest.raises(ValueError, match="`rounds` must be at least 0, got -1"):
        run(server, clients, -1)


def test_a_training_that_diverges_drops_the_client_and_says_so(draw):
    data = heterogeneous(draw).data
    server, clients = federation(dense(10, 8), FedAvg(lr=1e200, steps=9), data)
    before = bits(server.state)
    with pytest.warns(UserWarning, match="round 0 is void") as warned:
        record, again = run(server, clients, 2)
    assert len(warned) == 1 and record.void and again.void
    assert all("try a smaller `lr`" in e.reason for e in record.events)
    assert bits(server.state) == before


def test_who_watches_is_not_warned(draw):
    seen = []
    server, clients = federation(dense(10, 8), FedAvg(lr=1e200, steps=9), heterogeneous(draw).data)
    assert run(server, clients, 2, watch=seen.append) == seen
    assert [r.void for r in seen] == [True, True]


def test_nan_in_the_data_is_not_put_down_to_the_rate(draw):
    data = heterogeneous(draw).data
    data["client 1"] = tuple(t * float("nan") for t in data["client 1"])
    server, clients = federation(low_rank(draw, 10, 8, 2), FeDLRT(lr=0.01, steps=1), data)
    (record,) = run(server, clients, 1)
    (event,) = record.events
    assert (event.client, event.phase) == ("client 1", "gradient")
    assert "see its data and loss" in event.reason and "lr" not in event.reason


RUNS = {
    "a list of clients": (lambda c: {"clients": list(c.values())}, TypeError, "a dict of clients"),
    "a client too many": (lambda c: {"clients": c | {"x": c["client 0"]}}, ValueError, "those of"),
    "rounds below zero": (lambda c: {"rounds": -1}, ValueError, "`rounds` must be at least 0"),
    "half a round": (lambda c: {"rounds": 0.5}, TypeError, "`rounds` must be an int"),
    "nothing to call": (lambda c: {"watch": 3}, TypeError, "`watch` must be a function"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_cannot_be_meant_is_refused_before_the_first_round(draw, kind):
    server, clients = federation(dense(10, 8), FedAvg(), heterogeneous(draw).data)
    change, error, text = RUNS[kind]
    with pytest.raises(error, match=text):
        run(**({"server": server, "clients": clients, "rounds": 1} | change(clients)))
    assert server.number == 0


def test_a_server_needs_names_and_values(draw):
    with pytest.raises(TypeError, match="`clients` must be a list of names, got 3"):
        Server(dense(10, 8), FedAvg(), 3)
    with pytest.raises(ValueError, match="'weight' is on the meta device"):
        Server(dense(10, 8).to("meta"), FedAvg(), ["a"])


def test_a_server_saves_to_files_only(draw, tmp_path):
    server, _ = federation(dense(10, 8), FedAvg(), heterogeneous(draw).data)
    for path in (tmp_path, "."):
        with pytest.raises(IsADirectoryError, match="is a folder"):
            server.save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_merged_meanwhile_is_refused(draw):
    """Its outputs would not follow its factors, and nothing would be learned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10, dtype=torch.float64))
    rw.adapt_(model, rank=2)
    server, clients = federation(model, FeDLRT(lr=0.05), heterogeneous(draw).data)
    rw.merge_(model)
    with pytest.raises(RuntimeError, match="client 0' failed.*layer '0' is merged"):
        run(server, clients, 1)
    rw.unmerge_(model)
    assert not run(server, clients, 1)[0].void


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [FeDLRT(), FactorAverage()])
def test_factors_of_a_type_without_qr_are_refused_at_once(draw, dtype, method):
    with pytest.raises(ValueError, match="takes factors in float32 or float64"):
        Server(low_rank(draw, 10, 8, 2).to(dtype), method, ["a"])


def test_a_mistake_in_the_loss_ends_the_run(draw):
    data = heterogeneous(draw).data
    server, clients = federation(dense(10, 8), FedAvg(), data, lambda model, x, y: model(y).sum())
    with pytest.raises(RuntimeError, match="shape"):
        run(server, clients, 1)
