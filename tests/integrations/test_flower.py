"""Flower carries the rounds: the same results as in one process, and faults are recorded."""

import copy
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.federated import (
    Client,
    FactorAverage,
    FedAvg,
    FeDLRT,
    FullCorrection,
    NoCorrection,
    Reply,
    Request,
    Samples,
    Server,
    SimplifiedCorrection,
    run,
)

pytest.importorskip("flwr")
from flwr.app import Array, Context, RecordDict  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from flower_nodes import Node, Nodes, crossed  # noqa: E402
from image_files import write_idx  # noqa: E402
from rankwise.integrations.flower import client_app, serve  # noqa: E402

NAMES = list("abcd")
METHODS = {
    "none": FeDLRT(correction=NoCorrection(), lr=0.1, steps=3),
    "simplified": FeDLRT(correction=SimplifiedCorrection(), lr=0.1, steps=3),
    "full": FeDLRT(correction=FullCorrection(), lr=0.1, steps=3),
    "bfloat16": FeDLRT(lr=0.1, steps=3, direction_dtype=torch.bfloat16),
    "fedavg": FedAvg(lr=0.1, steps=3),
    "factors": FactorAverage(lr=0.1, steps=3),
}
FULL = METHODS["full"]


@pytest.fixture(autouse=True)
def running(monkeypatch):
    """What Flower sets in the process of a ServerApp."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@cache
def start(dense: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    if not dense:
        rw.factorize_(net, rank=2, select="0", init=rw.init.Random())
    return net


def model(method) -> nn.Module:
    return copy.deepcopy(start(isinstance(method, FedAvg)))


def loss(net, x, y):
    return nn.functional.mse_loss(net(x), y)


def client(name: str, method, kind=Client) -> Client:
    own = NAMES.index(name)
    draw = torch.Generator().manual_seed(own)
    x, y = torch.randn(12 + own, 9, generator=draw), torch.randn(12 + own, 3, generator=draw)
    return kind(name, model(method), method, loss, Samples(x, y, batch_size=5, seed=own))


def server(method=FULL, **options) -> Server:
    return Server(model(method), method, NAMES, **{"quorum": 2, "seed": 3, **options})


def node(own: str, method=FULL, kind=Client, **options) -> Node:
    """Its client is made anew for every message: all that it knows is in the context."""
    app = client_app(lambda context: client(context.node_config["name"], method, kind))
    return Node(app, {"name": own}, **options)


def grid(method=FULL, **faults: Node) -> Nodes:
    nodes = {name: faults.get(name) or node(name, method) for name in NAMES}
    return Nodes({100 + i: n for i, n in enumerate(nodes.values())})


def asks(round: int, phase: str):
    def matches(message) -> bool:
        about = message.content.get("about", {})
        return (about.get("round"), about.get("phase")) == (round, phase)

    return matches


class Gone(Client):
    """b is not there when round 0 asks for a gradient."""

    def answer(self, request: Request) -> Reply:
        if (self.name, request.round, request.phase) == ("b", 0, "gradient"):
            raise ConnectionError("gone")
        return super().answer(request)


@cache
def in_process(rounds: int, method=FULL, kind=Client, **options) -> tuple[Server, list]:
    reference = server(method, **options)
    return reference, run(reference, {n: client(n, method, kind) for n in NAMES}, rounds)


def same_state(one: Server, other: Server) -> bool:
    same = all(torch.equal(one.state[n], other.state[n]) for n in one.state)
    return same and one.state.keys() == other.state.keys() and one.number == other.number


def quick(nodes: Nodes, own: Server, rounds: int, **options) -> list:
    return serve(nodes, own, rounds, **{"timeout": 0.05, "patience": 0.05, **options})


# Rounds


@pytest.mark.parametrize("kind, participation", [*((kind, 1.0) for kind in METHODS), ("full", 0.5)])
def test_rounds_over_flower_are_those_of_one_process_bit_for_bit(kind, participation):
    method = METHODS[kind]
    reference, expected = in_process(2, method, participation=participation)
    own, seen = server(method, participation=participation), []
    records = quick(grid(method), own, 2, watch=seen.append)
    assert records == seen == expected
    assert same_state(own, reference)


def test_what_a_client_remembers_stays_on_its_node():
    nodes = grid()
    quick(nodes, server(), 1)
    told = {n for message in nodes.pushed for n in message.content.get("arrays", {})}
    for one in nodes.nodes.values():
        kept = one.state["rankwise"].keys()
        assert "clock" in kept
        assert not told & kept
    for earlier, later in pairwise(m for m in nodes.pushed if m.metadata.dst_node_id == 100):
        both = earlier.content.get("arrays", {}).keys() & later.content["arrays"].keys()
        assert not both, "what was told before in a round does not travel again"


# Faults


class Raising(Gone):
    def answer(self, request):
        try:
            return super().answer(request)
        except ConnectionError:
            raise RuntimeError("a mistake\n in the loss " + "!" * 999) from None


def hostile(change):
    def alter(message, reply) -> None:
        if asks(0, "gradient")(message):
            change(reply.content)

    return alter


def of_another_shape(content) -> None:
    name, array = next(iter(content["arrays"].items()))
    content["arrays"][name] = Array(np.zeros((*array.shape, 1), np.float32))


def of_nan(content) -> None:
    for name, array in content["arrays"].items():
        content["arrays"][name] = Array(np.full(array.shape, np.nan, np.float32))


def of_infinite_weight(content) -> None:
    content["about"]["samples"] = 2**62


def of_pickles(content) -> None:
    for name in content["arrays"]:
        content["arrays"][name] = Array("float32", (2,), "numpy.ndarray", pickle.dumps([1.0, 2.0]))


def of_nothing(content) -> None:
    content.clear()


FAULTS = {
    "raises": (
        dict(kind=Raising),
        "dropped",
        r"RuntimeError.*a mistake in the loss !+ \.\.\. !+",
    ),
    "killed": (dict(silent=asks(0, "gradient")), "dropped", "no answer within 0.05 s"),
    "wrong shape": (dict(alter=hostile(of_another_shape)), "dropped", "not decoded: .*must be"),
    "NaN": (dict(alter=hostile(of_nan)), "refused", "NaN"),
    "weight": (dict(alter=hostile(of_infinite_weight)), "refused", "4611686018427387904 samples"),
    "pickles": (dict(alter=hostile(of_pickles)), "dropped", "not decoded"),
    "nothing": (dict(alter=hostile(of_nothing)), "dropped", "not decoded: the answer is none"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_client_costs_its_part_of_one_round_and_is_recorded(fault):
    options, kind, reason = FAULTS[fault]
    reference, expected = in_process(2, kind=Gone)
    own = server()
    records = quick(grid(b=node("b", **options)), own, 2)
    assert same_state(own, reference)
    assert [r.answered for r in records] == [r.answered for r in expected]
    assert [r.answered for r in records] == [tuple("acd"), tuple("abcd")]
    (event,) = records[0].events
    assert (event.client, event.phase, event.kind) == ("b", "gradient", kind)
    assert "\n" not in event.reason and len(event.reason) <= 300
    assert re.search(reason, event.reason)


def test_a_late_answer_counts_for_nothing_and_is_recorded():
    reference, expected = in_process(2, kind=Gone)
    late = node("b", late=lambda message: 4 if asks(0, "gradient")(message) else 0)
    own = server()
    records = quick(grid(b=late), own, 2)
    assert same_state(own, reference)
    first, second = records[0].events
    assert (first.client, first.kind, first.reason) == ("b", "dropped", "no answer within 0.05 s")
    assert (second.client, second.kind, second.reason) == (
        "b",
        "late",
        "answers 'gradient' of round 0",
    )


def test_without_a_quorum_a_round_is_void_and_the_next_one_is_not():
    faults = {n: node(n, silent=asks(0, "gradient")) for n in "abc"}
    own = server()
    before = {n: t.clone() for n, t in own.state.items()}
    (void,) = quick(grid(**faults), own, 1)
    assert void.void and all(torch.equal(own.state[n], before[n]) for n in before)
    (sound,) = quick(grid(**faults), own, 2)
    assert not sound.void and sound.answered == tuple("abcd")


class Killed(Exception):
    """The end of a server's process."""


@pytest.mark.parametrize("sent", [0, 9, 17])
def test_a_killed_server_goes_on_from_its_checkpoint(sent, tmp_path):
    reference, expected = in_process(2)
    file = tmp_path / "server.safetensors"

    class Dying(Nodes):
        def push_messages(self, messages):
            if len(self.pushed) == 4 + sent:  # after the four names
                raise Killed
            return super().push_messages(messages)

    with pytest.raises(Killed):
        quick(Dying(grid().nodes), server(), 2, checkpoint=file)
    assert file.exists() == (sent > 12)
    own, other = server(), grid()
    # Nodes of a new run: other ids, and empty contexts.
    nodes = Nodes({i + 7: n for i, n in other.nodes.items()})
    records = quick(nodes, own, 2, checkpoint=file)
    assert records == expected[1 if file.exists() and sent > 12 else 0 :]
    assert same_state(own, reference)


def test_a_checkpoint_is_there_before_the_round_is_told(tmp_path):
    file, numbers = tmp_path / "server.safetensors", []

    def watch(record) -> None:
        again = server()
        again.load(file)
        numbers.append((record.number, again.number))

    quick(grid(), server(), 2, checkpoint=file, watch=watch)
    assert numbers == [(0, 1), (1, 2)]
    assert quick(grid(), server(), 2, checkpoint=file) == []


# Who is who


def test_the_name_that_the_operator_gave_counts_and_the_node_is_not_asked():
    # Each has the data of its name backwards, and would call itself so.
    nodes = Nodes({i: node(o, name=n) for i, (n, o) in enumerate(zip("abcd", "dcba", strict=True))})
    own = server()
    (record,) = quick(nodes, own, 1)
    assert record.answered == tuple("abcd")
    assert "query" not in {m.metadata.message_type for m in nodes.pushed}
    reference = server()
    clients = {n: client(o, FULL) for n, o in zip("abcd", "dcba", strict=True)}
    for name, one in clients.items():
        one.name = name
    run(reference, clients, 1)
    assert same_state(own, reference)


def test_a_second_node_of_a_name_is_asked_only_when_the_first_is_gone():
    nodes = grid()
    nodes.nodes[900] = node("b")
    reference, expected = in_process(2)
    own, asked = server(), []

    def gone(record) -> None:
        asked.append({m.metadata.dst_node_id for m in nodes.pushed if "about" in m.content})
        nodes.nodes[101].online = False
        nodes.pushed.clear()

    with pytest.warns(UserWarning, match="nodes 101 and 900 are both 'b'; only node 101"):
        records = quick(nodes, own, 2, watch=gone)
    assert asked == [{100, 101, 102, 103}, {100, 900, 102, 103}]
    assert records == expected
    assert same_state(own, reference)


def test_a_node_that_the_operator_named_takes_its_name_back():
    """One without a name, which the SuperLink also lets in, has called itself so before."""
    nodes = grid()
    nodes.nodes[900] = node("b", name="b")
    nodes.nodes[900].online = False
    asked = []

    def comes(record) -> None:
        asked.append({m.metadata.dst_node_id for m in nodes.pushed if "about" in m.content})
        nodes.nodes[900].online = True
        nodes.pushed.clear()

    with pytest.warns(UserWarning, match="nodes 101 and 900 are both 'b'; only node 900"):
        quick(nodes, server(), 3, watch=comes)
    assert asked[0] == {100, 101, 102, 103}
    assert asked[2] == {100, 900, 102, 103}


def test_a_node_of_an_unknown_name_is_never_asked_to_train():
    nodes = grid()
    nodes.nodes[900] = Node(nodes.nodes[100].app, {"name": "a"}, name="mallory")
    with pytest.warns(UserWarning, match="node 900 is 'mallory', no client of this server"):
        quick(nodes, server(), 2)
    assert 900 not in {m.metadata.dst_node_id for m in nodes.pushed}


def test_a_client_that_is_not_connected_is_left_out_and_comes_back():
    nodes = grid()
    nodes.nodes[101].online = False
    own = server()

    def back(record) -> None:
        nodes.nodes[101].online = True

    first, second, third = quick(nodes, own, 3, watch=back)
    assert [str(e) for e in first.events] == ["b dropped in gradient: not connected"]
    assert second.answered in (tuple("acd"), tuple("abcd"))
    assert third.answered == tuple("abcd")


def test_a_node_whose_app_cannot_start_is_missing_not_fatal():
    def broken(context):
        raise FileNotFoundError("no data here")

    nodes = grid(b=Node(client_app(broken), {}))
    (record,) = quick(nodes, server(), 1)
    assert [str(e) for e in record.events] == ["b dropped in gradient: not connected"]


def test_too_few_clients_end_the_run_and_are_named():
    nodes = grid()
    for i in (100, 102, 103):
        nodes.nodes[i].online = False
    with pytest.raises(TimeoutError, match=r"1 clients are connected and 2 .* missing: a, c, d"):
        quick(nodes, server(), 1)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rounds": -1}, ValueError, "rounds"),
        ({"rounds": 1.5}, TypeError, "rounds"),
        ({"timeout": 0.0}, ValueError, "`timeout` must be a number of seconds above 0"),
        ({"patience": -1.0}, ValueError, "patience"),
        ({"timeout": "60"}, TypeError, "timeout"),
        ({"checkpoint": 3}, TypeError, "checkpoint"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(options, error, message):
    nodes = grid()
    with pytest.raises(error, match=message):
        serve(nodes, server(), **{"rounds": 1, **options})
    assert nodes.pushed == []


def test_the_stand_in_link_carries_bytes_and_no_objects():
    nodes = grid()
    quick(nodes, server(), 1)
    message = nodes.pushed[-1]
    copy = crossed(message)
    assert copy.content["arrays"] is not message.content["arrays"]
    assert copy.content["arrays"] == message.content["arrays"]


# The app folder


def test_the_app_folder_trains(monkeypatch, capsys, tmp_path):
    tomllib = pytest.importorskip("tomllib")
    folder = Path(__file__).parents[2] / "examples" / "flower"
    monkeypatch.syspath_prepend(folder)
    app = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    config = {**app["config"], "rounds": 1, "data": str(write_idx(tmp_path / "data"))}
    server_app, clients_app = (
        pkgutil.resolve_name(app["components"][part]) for part in ("serverapp", "clientapp")
    )
    nodes = {
        i: Node(clients_app, {"partition-id": i, "num-partitions": 2}, run_config=config)
        for i in range(config["clients"])
    }
    server_app(Nodes(nodes), Context(1, 0, {}, RecordDict(), config))
    assert re.search(r"^round 1: accuracy .*, 2 of 2 clients$", capsys.readouterr().out, re.M)


# The simulation

SIMULATED = """
import logging, os, signal, sys
import torch
from rankwise.integrations import flower
from test_flower import FULL, NAMES, client, in_process, same_state, server

before = dict(os.environ), logging.getLogger("flwr").level, signal.getsignal(signal.SIGTERM)
own = server()
clients = {n: client(n, FULL) for n in NAMES}
records = flower.simulate(own, clients, 2, processes=1)
assert before == (
    dict(os.environ), logging.getLogger("flwr").level, signal.getsignal(signal.SIGTERM)
)
reference, expected = in_process(2)
assert records == expected
assert same_state(own, reference)
print("the same")
"""


@pytest.mark.skipif(
    "RANKWISE_SIMULATION" not in os.environ,
    reason="starts Ray, 15 s on idle cores: set RANKWISE_SIMULATION=1",
)
def test_flowers_simulation_gives_the_same_bits_and_is_quiet():
    pytest.importorskip("ray")
    paths = [str(Path(rw.__file__).parents[1]), *(str(p) for p in Path(__file__).parents[:2])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SIMULATED], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the same\n", "")


def test_the_simulation_wants_the_clients_of_the_server():
    from rankwise.integrations import flower

    with pytest.raises(ValueError, match=r"must be those of the server, .* got \['a'\]"):
        flower.simulate(server(), {"a": client("a", FULL)}, 1)
