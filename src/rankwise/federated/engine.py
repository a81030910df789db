"""All clients in one process, one after the other: for studies and tests."""

from collections.abc import Callable, Mapping

from rankwise.federated.client import Client
from rankwise.federated.message import Failure, Reply, Request
from rankwise.federated.record import RoundRecord
from rankwise.federated.server import Server
from rankwise.numerics.given import check_integer

GONE = (OSError, FloatingPointError)
"""What means that a client does not answer: no connection, a timeout, a training that diverged."""


def run(
    server: Server,
    clients: Mapping[str, Client],
    rounds: int,
    watch: Callable[[RoundRecord], object] | None = None,
) -> list[RoundRecord]:
    """Run `rounds` rounds; a client that raises OSError or FloatingPointError is dropped.

    Args:
        server: goes on from where it is.
        clients: one for each name of the server.
        rounds: how many, >= 0.
        watch: called with the record of each round.

    Raises:
        ValueError: if the names are not those of the server. Other errors of a client are mistakes
            in its model, loss or data, and end the run.
    """
    check_rounds(rounds)
    check_clients(server, clients)
    records = []
    for _ in range(rounds):
        round = server.open_round()
        while round.request is not None:
            request = round.request
            round.receive([ask(name, clients[name], request) for name in round.participants])
        records.append(server.close_round(round))
        if watch is not None:
            watch(records[-1])
    return records


def check_rounds(rounds: int) -> None:
    """TypeError or ValueError for what is no number of rounds."""
    check_integer("rounds", rounds)
    if rounds < 0:
        raise ValueError(f"`rounds` must be at least 0, got {rounds}")


def check_clients(server: Server, clients: Mapping[str, Client]) -> None:
    """ValueError unless there is one for each name of the server, and of that name."""
    if set(clients) != set(server.clients):
        raise ValueError(
            f"`clients` must be those of the server, {list(server.clients)}, got {sorted(clients)}"
        )
    for name, client in clients.items():
        if client.name != name:
            raise ValueError(f"`clients[{name!r}]` has the name {client.name!r}")


def ask(name: str, client: Client, request: Request) -> Reply | Failure:
    """The answer of a client, or why there is none."""
    try:
        return client.answer(request)
    except GONE as error:
        return Failure(name, f"{type(error).__name__}: {error}")
