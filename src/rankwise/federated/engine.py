"""All clients in one process, one after the other: for studies and tests."""

import warnings
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

    Without `watch`, the first round that is void, and leaves the model as it was, gives a warning.

    Args:
        server: goes on from where it is.
        clients: one for each name of the server.
        rounds: how many, >= 0.
        watch: called with the record of each round.

    Raises:
        TypeError: for clients that are no dict, and a `watch` that is no function.
        ValueError: if the names are not those of the server.
        RuntimeError: from any other error of a client, with its name: that is a mistake in its
            model, loss or data, and ends the run.
    """
    check_rounds(rounds)
    check_clients(server, clients)
    if watch is not None and not callable(watch):
        raise TypeError(f"`watch` must be a function of a RoundRecord, got {watch!r}")
    records: list[RoundRecord] = []
    for _ in range(rounds):
        round = server.open_round()
        while round.request is not None:
            request = round.request
            round.receive([ask(name, clients[name], request) for name in round.participants])
        record = server.close_round(round)
        if watch is not None:
            watch(record)
        elif record.void and not any(earlier.void for earlier in records):
            warnings.warn(void_message(record), stacklevel=2)
        records.append(record)
    return records


def check_rounds(rounds: int) -> None:
    """TypeError or ValueError for what is no number of rounds."""
    check_integer("rounds", rounds)
    if rounds < 0:
        raise ValueError(f"`rounds` must be at least 0, got {rounds}")


def check_clients(server: Server, clients: Mapping[str, Client]) -> None:
    """TypeError or ValueError unless it is a dict with one for each name of the server."""
    if not isinstance(clients, Mapping):
        raise TypeError(
            "`clients` must be a dict of clients by name, `{client.name: client, ...}`, got "
            f"{type(clients).__name__}"
        )
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
    except Exception as error:
        raise RuntimeError(
            f"client {name!r} failed in phase {request.phase!r} of round {request.round}: "
            f"{type(error).__name__}: {error}"
        ) from error


def void_message(record: RoundRecord) -> str:
    """What the first void round of a run says."""
    return (
        f"round {record.number} is void and the model stays as it was, for fewer clients answered "
        f"than the quorum ({record.events[0]}). What `run` returns has `.void` and `.events` of "
        "this round and the later ones"
    )
