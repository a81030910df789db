"""Which node is which client, what was sent to whom, and what came back."""

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from rankwise.federated.message import Arrays, Failure, Reply, Request
from rankwise.integrations.flower.message import ABOUT, of_request, to_reply

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between two looks for answers; the pauses grow by half each."""
BEGINNING, END = 100, 195
"""Characters kept of a long reason: Ray tells last what was raised, a node first."""


class Sent(NamedTuple):
    """A request on its way, and what an answer to it must be like."""

    client: str
    request: Request
    like: Arrays


class Post:
    """Carries requests to clients over `grid`.

    A client is a node by name. The name that the operator gave to a node when registering its key
    counts; a node without one is asked for its own. Of nodes that call themselves by one name the
    first keeps it as long as it is connected, and names that the server does not know are never
    asked for anything else.

    Args:
        grid: of the ServerApp.
        clients: the names that the server knows.
        timeout: seconds within which an answer must come, > 0.
    """

    def __init__(self, grid: Grid, clients: Sequence[str], timeout: float) -> None:
        self._grid, self._clients, self._timeout = grid, clients, timeout
        self._online: dict[int, str | None] = {}
        """By node the name that the operator gave to it."""
        self._names: dict[int, str] = {}
        self._asked_name: dict[int, float] = {}
        self._greetings: dict[str, int] = {}
        self._sent: dict[str, Sent] = {}

    def gather(self, wanted: int, least: int, seconds: float) -> None:
        """Wait until `wanted` clients are connected, or for `seconds`.

        Raises:
            TimeoutError: if then there are not even `least`.
        """
        for _ in looks(seconds):
            self._look()
            if len(self._nodes()) >= wanted:
                return
        missing = sorted(set(self._clients) - set(self._nodes()))
        if len(self._clients) - len(missing) < least:
            raise TimeoutError(
                f"after {seconds:g} s {len(self._clients) - len(missing)} clients are connected "
                f"and {least} are needed; missing: {', '.join(missing)}"
            )

    def ask(
        self, request: Request, participants: Sequence[str], like: Arrays
    ) -> list[Reply | Failure]:
        """Answers and failures of all `participants`, and late answers to earlier requests."""
        self._look()
        nodes = self._nodes()
        answers: list[Reply | Failure] = []
        waiting = set()
        for client in participants:
            if client not in nodes:
                answers.append(Failure(client, "not connected"))
                continue
            id_ = self._push(of_request(request), nodes[client], "train")
            if id_ is None:
                answers.append(Failure(client, "the message could not be sent"))
            else:
                self._sent[id_] = Sent(client, request, like)
                waiting.add(id_)
        for _ in looks(self._timeout):
            for id_, message in self._pull():
                sent = self._sent.pop(id_)
                if id_ in waiting or message.has_content():
                    answers.append(heard(message, sent))
                waiting.discard(id_)
            if not waiting:
                return answers
        late = f"no answer within {self._timeout:g} s"
        return answers + [Failure(self._sent[id_].client, late) for id_ in sorted(waiting)]

    def _nodes(self) -> dict[str, int]:
        """The connected clients; of nodes of one name that which the operator called so."""
        named = [(n, name) for n, name in self._names.items() if n in self._online]
        named.sort(key=lambda node: not self._online[node[0]])
        return {name: node for node, name in reversed(named) if name in self._clients}

    def _look(self) -> None:
        """Learn who is connected, and the names of those who are new."""
        now = time.monotonic()
        self._online = {node.node_id: node.name for node in self._grid.get_nodes()}
        for node, name in self._online.items():
            if node in self._names:
                continue
            if name:
                self._named(node, name)
            elif now - self._asked_name.get(node, -float("inf")) > self._timeout:
                self._asked_name[node] = now
                id_ = self._push(RecordDict(), node, "query")
                if id_ is not None:
                    self._greetings[id_] = node
        for id_, message in self._pull_from(list(self._greetings)):
            node, about = self._greetings.pop(id_), None
            if message.has_content():
                about = message.content.get(ABOUT)
            own = about.get("name") if isinstance(about, ConfigRecord) else None
            if isinstance(own, str):
                self._named(node, own)

    def _named(self, node: int, name: str) -> None:
        other = self._nodes().get(name)
        self._names[node] = name
        if name not in self._clients:
            warnings.warn(f"node {node} is {name!r}, no client of this server", stacklevel=2)
        elif other is not None:
            kept = self._nodes()[name]
            warnings.warn(
                f"nodes {other} and {node} are both {name!r}; only node {kept} is asked while it "
                "is connected",
                stacklevel=2,
            )

    def _push(self, content: RecordDict, node: int, kind: str) -> str | None:
        # An answer that is late by less than another timeout is still carried, for the record.
        message = Message(content, node, kind, ttl=2 * self._timeout)
        return next(iter(self._grid.push_messages([message])), None) or None

    def _pull(self) -> list[tuple[str, Message]]:
        return self._pull_from(list(self._sent))

    def _pull_from(self, ids: list[str]) -> list[tuple[str, Message]]:
        """What came as answers to `ids`."""
        came = self._grid.pull_messages(ids) if ids else ()
        return [(m.metadata.reply_to_message_id, m) for m in came]


def heard(message: Message, sent: Sent) -> Reply | Failure:
    """What an answer says; a Failure where it is an error, or must not be decoded."""
    if message.has_error():
        reason = " ".join((message.error.reason or "").split())
        if len(reason) > BEGINNING + END:
            reason = f"{reason[:BEGINNING]} ... {reason[-END:]}"
        return Failure(sent.client, reason or f"error {message.error.code}")
    try:
        return to_reply(message.content, sent.client, sent.request, sent.like)
    except ValueError as error:
        return Failure(sent.client, f"answer not decoded: {error}")


def looks(seconds: float) -> Iterator[None]:
    """Once at once, then after ever longer pauses, the last time after `seconds`."""
    end, pause = time.monotonic() + seconds, FIRST_PAUSE
    yield
    while (left := end - time.monotonic()) > 0.0:
        time.sleep(min(pause, left))
        pause = min(1.5 * pause, LONGEST_PAUSE)
        yield
