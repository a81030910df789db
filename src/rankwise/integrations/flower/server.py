"""What a ServerApp runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from rankwise.federated.engine import check_rounds
from rankwise.federated.record import RoundRecord
from rankwise.federated.server import Server
from rankwise.integrations.flower.post import Post
from rankwise.io.path import given_path
from rankwise.numerics.given import check_number


def serve(
    grid: Grid,
    server: Server,
    rounds: int,
    *,
    checkpoint: str | Path | None = None,
    timeout: float = 600.0,
    patience: float = 600.0,
    watch: Callable[[RoundRecord], object] | None = None,
) -> list[RoundRecord]:
    """Run rounds over `grid` until the server has done `rounds` of them; their records.

    For the main function of a ServerApp whose clients run `client_app`. A client that is gone,
    fails, answers too late or not as asked is left out of its round, and the record says why.

    Args:
        grid: which Flower gives to the main function.
        server: its clients are the names that operators give to nodes by `flwr supernode register
            --name`, or that `make_client` gives to clients.
        rounds: in all, those before the checkpoint included, >= 0.
        checkpoint: a file to which the server's state is written after every round, and from which
            it goes on if the file is there; nodes need not know. None: there is none.
        timeout: seconds within which the answer to a request must come, > 0.
        patience: seconds to wait for all clients at the start, and for a quorum of them before
            each later round, > 0.
        watch: called with the record of each round, after the checkpoint is written.

    Raises:
        TimeoutError: if fewer than a quorum of the clients are connected after `patience`.
    """
    check_rounds(rounds)
    for name, seconds in (("timeout", timeout), ("patience", patience)):
        check_number(name, seconds)
        if not seconds > 0.0:
            raise ValueError(f"`{name}` must be a number of seconds above 0, got {seconds}")
    file = None if checkpoint is None else given_path(checkpoint, "checkpoint")
    progress: dict[str, Any] = {}
    if file is not None and file.exists():
        progress = server.load(file)
    post = Post(grid, server.clients, timeout)
    records: list[RoundRecord] = []
    wanted = len(server.clients)
    while server.number < rounds:
        post.gather(wanted, server.quorum, patience)
        wanted = server.quorum
        round = server.open_round()
        while round.request is not None:
            round.receive(post.ask(round.request, round.participants, round.expected))
        records.append(server.close_round(round))
        if file is not None:
            server.save(file, progress)
        if watch is not None:
            watch(records[-1])
    return records
