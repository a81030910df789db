"""Which of the messages that came are sound answers to what was asked; a pure function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.federated.bounds import Bounds, flaw_of, norm_of, outliers
from rankwise.federated.message import Arrays, Failure, Reply
from rankwise.federated.record import Event

LONGEST = 300
"""Characters kept of what a message gives for a name or a reason."""


@dataclass(frozen=True)
class Question:
    """What was asked, of whom, and what a right answer looks like."""

    round: int
    phases: Sequence[str]
    """Names of all phases of the round."""
    index: int
    """Of the phase that was asked for."""
    participants: Sequence[str]
    clients: frozenset[str]
    """All that the server knows."""
    samples: Mapping[str, int]
    """What each participant claimed in an earlier phase."""
    like: Arrays
    bounds: Bounds

    @property
    def phase(self) -> str:
        return self.phases[self.index]

    def event(self, client: Any, kind: str, reason: str) -> Event:
        return Event(text_of(client), self.phase, kind, text_of(reason))


def text_of(value: Any, form: Callable[[Any], str] = str) -> str:
    """Its text, cut: a message may hold words of any length, and ints too long to be printed."""
    try:
        return form(value)[:LONGEST]
    except Exception as error:
        return f"a {type(value).__name__} ({type(error).__name__})"


def screened(question: Question, messages: Sequence[Any]) -> tuple[dict[str, Reply], list[Event]]:
    """The answers that count, by client, and what there is to say of all others.

    Both are the same for any order of the messages. Exact copies of an answer count once; a client
    whose answers differ is refused.
    """
    events: list[Event] = []
    replies: dict[str, list[Reply]] = {c: [] for c in question.participants}
    failures: dict[str, str] = {}
    for message in messages:
        event = _out_of_place(question, message)
        if event is not None:
            events.append(event)
        elif isinstance(message, Reply):
            replies[message.client].append(message)
        else:
            failures[message.client] = text_of(message.reason)
    for client in failures:
        if replies[client]:
            told = f"answered after all, but was given up: {failures[client]}"
            events.append(question.event(client, "late", told))
    sound: dict[str, Reply] = {}
    for client, came in replies.items():
        reason = _flaw(question, came) if came else None
        if not came:
            events.append(question.event(client, "dropped", failures.get(client, "no answer")))
        elif reason is None:
            sound[client] = came[0]
        else:
            events.append(question.event(client, "refused", reason))
    norms = {c: norm_of(reply.arrays) for c, reply in sound.items()}
    for client, reason in outliers(norms, question.bounds.relative).items():
        events.append(question.event(client, "refused", reason))
        del sound[client]
    return sound, sorted(events)


def _out_of_place(question: Question, message: Any) -> Event | None:
    """Why a message is no answer to this question from one who was asked; None if it is."""
    if not isinstance(message, (Reply, Failure)):
        what = type(message).__name__
        return question.event("", "refused", f"a {what}, neither Reply nor Failure")
    client = message.client
    if not isinstance(client, str) or client not in question.clients:
        return question.event(client, "refused", "no client of this server")
    if isinstance(message, Reply):
        stamp = f"answers {text_of(message.phase, repr)} of round {text_of(message.round, repr)}"
        strange = type(message.round) is not int or type(message.phase) is not str
        if strange or message.phase not in question.phases:
            return question.event(client, "refused", stamp)
        own = message.round, question.phases.index(message.phase)
        if own != (question.round, question.index):
            late = own < (question.round, question.index)
            return question.event(client, "late" if late else "refused", stamp)
    if client not in question.participants:
        return question.event(client, "refused", "was not asked")
    return None


def _flaw(question: Question, came: Sequence[Reply]) -> str | None:
    """What is wrong with the answers of one client, at least one."""
    try:
        return _difference(question, came)
    except Exception as error:
        # No message stops a round, whatever it is made of.
        return f"cannot be checked: {type(error).__name__}: {error}"


def _difference(question: Question, came: Sequence[Reply]) -> str | None:
    """The first way in which the answers of one client are not as expected."""
    bounds, claims = question.bounds, {text_of(reply.samples, repr) for reply in came}
    for reply in came:
        if type(reply.samples) is not int or not 1 <= reply.samples <= bounds.samples:
            return f"claims {text_of(reply.samples, repr)} samples"
        flaw = flaw_of(reply.arrays, question.like, bounds.norm)
        if flaw is not None:
            return flaw
    first = came[0]
    before = question.samples.get(first.client, first.samples)
    if before != first.samples:
        return f"claims {first.samples} samples, and {before} in an earlier phase"
    equal = (r.arrays[n].equal(first.arrays[n]) for r in came[1:] for n in question.like)
    return None if len(claims) == 1 and all(equal) else "sent answers that differ"
