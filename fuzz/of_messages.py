"""Messages of Flower's: what a server reads of its clients, and a client of its server.

A content is what the sender claims, as JSON, and the bytes of one array after the other.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from loader import SEPARATOR, Loader
from mutate import of_json, of_npy
from of_servers import CLIENTS, client, server
from rankwise.federated.message import Arrays, Reply, Request
from rankwise.federated.round import Round
from rankwise.integrations.flower.message import (
    ABOUT,
    ARRAYS,
    of_reply,
    of_request,
    to_reply,
    to_request,
)


@cache
def course() -> tuple[list[Request], list[list[Reply]], list[Arrays]]:
    """A sound round: by phase the request, the answers, and what a client knows before it."""
    round, clients = server().open_round(), [client(name) for name in CLIENTS]
    requests, answers, memories = [], [], []
    while round.request is not None:
        requests.append(round.request)
        memories.append(dict(clients[0].memory))
        answers.append([one.answer(round.request) for one in clients])
        round.receive(answers[-1])
    return requests, answers, memories


def written(record: RecordDict, **more: Any) -> bytes:
    arrays = record[ARRAYS]
    claims = {n: [a.dtype, list(a.shape), a.stype] for n, a in arrays.items()}
    head = {ABOUT: dict(record[ABOUT]), ARRAYS: claims, **more}
    return SEPARATOR.join([json.dumps(head).encode(), *(a.data for a in arrays.values())])


def message(content: bytes) -> tuple[RecordDict, dict[str, Any]]:
    """A message as it arrives; ValueError for what Flower's own types do not let arrive."""
    head, *data = content.split(SEPARATOR)
    try:
        told = json.loads(head)
        claims = told[ARRAYS].items()
        arrays = ArrayRecord({n: _array(c, d) for (n, c), d in zip(claims, data, strict=False)})
        return RecordDict({ARRAYS: arrays, ABOUT: ConfigRecord(told[ABOUT])}), told
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"no message: {error}") from error


def _array(claim: Any, data: bytes) -> Array:
    dtype, shape, stype = claim
    if not all(type(n) is int for n in shape):
        raise TypeError("a shape is of integers")
    return Array(dtype, tuple(shape), stype, data)


def reply_seeds(folder: Path) -> list[bytes]:
    _, answers, _ = course()
    return [written(of_reply(own), phase=i) for i, (own, _) in enumerate(answers)]


def read_reply(content: bytes, folder: Path) -> None:
    """What a server hears of a client, beside a sound answer of another; nothing may end it."""
    record, told = message(content)
    _, answers, _ = course()
    phase = told.get("phase")
    phase = phase if type(phase) is int and 0 <= phase < len(answers) else 0
    round = server().open_round()
    for earlier in answers[:phase]:
        round.receive(earlier)
    _receive(round, record, answers[phase][1])
    if round.events:
        raise ValueError(round.events[0].reason)


def _receive(round: Round, record: RecordDict, other: Reply) -> None:
    assert round.request is not None
    with _only(ValueError):
        own = to_reply(record, CLIENTS[0], round.request, round.expected)
    with _only():
        round.receive([own, other])
    state = round.state or {}
    if not all(bool(t.isfinite().all()) for t in state.values()):
        raise RuntimeError("an answer spoils the state")


@contextmanager
def _only(*expected: type[Exception]) -> Iterator[None]:
    """Any other error would end the server."""
    try:
        yield
    except expected:
        raise
    except Exception as error:
        raise RuntimeError(f"an answer ends the server: {type(error).__name__}: {error}") from error


def request_seeds(folder: Path) -> list[bytes]:
    requests, _, _ = course()
    return [written(of_request(request)) for request in requests]


def read_request(content: bytes, folder: Path) -> None:
    """What a client makes of a request; an error is told to the server by its message."""
    request = to_request(message(content)[0])
    requests, _, memories = course()
    own, known = client(CLIENTS[0]), dict(zip((r.phase for r in requests), memories, strict=True))
    own.memory = dict(known.get(request.phase, {}))
    try:
        of_reply(own.answer(request))
    except FloatingPointError as error:
        raise ValueError(str(error)) from error


LOADERS = (
    Loader("flower-reply", reply_seeds, read_reply, (of_json, of_npy), named=False),
    Loader("flower-request", request_seeds, read_request, (of_json, of_npy), named=False),
)
