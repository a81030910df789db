"""One round at the server: asks phase by phase, and lets only sound answers in."""

from collections.abc import Iterable
from typing import Any

from rankwise.federated.bounds import Bounds, flaw_of, norm_of, outliers
from rankwise.federated.mean import weighted_mean
from rankwise.federated.message import Arrays, Failure, Reply, Request, payload
from rankwise.federated.outline import Outline
from rankwise.federated.phase import Method
from rankwise.federated.record import Event


class Round:
    """Made by `Server.open_round`. `request` is what to ask `participants` next, None at the end.

    It knows nothing of how messages travel. `receive` is called once for each request, with all
    that came since the last one: answers, failures, and late answers to earlier requests. Who is in
    none of them is gone.
    """

    def __init__(
        self,
        number: int,
        method: Method,
        outline: Outline,
        state: Arrays,
        participants: tuple[str, ...],
        clients: frozenset[str],
        quorum: int,
        bounds: Bounds,
    ) -> None:
        self.number, self.participants = number, participants
        self.asked = participants
        self.down = self.up = 0
        self.events: list[Event] = []
        self.state: Arrays | None = None
        self._method, self._outline, self._known = method, outline, dict(state)
        self._clients, self._quorum, self._bounds = clients, quorum, bounds
        self._samples: dict[str, int] = {}
        self._index = 0
        self.request: Request | None = None
        self._ask(self._known)

    @property
    def void(self) -> bool:
        """Whether it ended without a new state."""
        return self.request is None and self.state is None

    @property
    def expected(self) -> Arrays:
        """Names, shapes and types of a sound answer to `request`: tensors without content.

        A transport that knows them need not decode what does not fit.

        Raises:
            ValueError: after the end of the round.
        """
        if self.request is None:
            raise ValueError(f"round {self.number} is over: nothing is asked any more")
        return self._method.phases[self._index].reply_like(self._outline, self._known)

    def receive(self, answers: Iterable[Any]) -> None:
        """Take what came since `request` was sent, in any order; never raises for a wrong answer.

        Raises:
            ValueError: after the end of the round.
        """
        phase, like = self._method.phases[self._index], self.expected
        sound = self._sound(list(answers), like)
        self.participants = tuple(sorted(sound))
        self._samples = {c: sound[c].samples for c in sound}
        if len(sound) < self._quorum:
            self.request = None
            return
        mean = weighted_mean(
            {c: {n: r.arrays[n] for n in like} for c, r in sound.items()}, self._samples
        )
        news = phase.combine(self._outline, self._known, mean)
        self._index += 1
        if self._index == len(self._method.phases):
            self.request, self.state = None, news
        else:
            self._known = self._known | news
            self._ask(news)

    def _ask(self, arrays: Arrays) -> None:
        name = self._method.phases[self._index].name
        self.request = Request(self.number, name, arrays)
        self.down += payload(arrays) * len(self.participants)

    def _sound(self, answers: list[Any], like: Arrays) -> dict[str, Reply]:
        """The answers that count, by client; the others become events."""
        assert self.request is not None
        failures = {a.client: a.reason for a in answers if isinstance(a, Failure)}
        replies: dict[str, list[Reply]] = {}
        for answer in answers:
            if isinstance(answer, Reply):
                self.up += _weight(answer)
                if self._expected(answer):
                    replies.setdefault(answer.client, []).append(answer)
            elif not isinstance(answer, Failure):
                self._note("", "refused", f"neither Reply nor Failure: {type(answer).__name__}")
        sound: dict[str, Reply] = {}
        for client in self.participants:
            came = replies.get(client, [])
            if not came:
                self._note(client, "dropped", failures.get(client, "no answer"))
                continue
            reason = self._flaw(came, like)
            if reason is None:
                sound[client] = came[0]
            else:
                self._note(client, "refused", reason)
        far = outliers({c: norm_of(r.arrays) for c, r in sound.items()}, self._bounds.relative)
        for client, reason in sorted(far.items()):
            self._note(client, "refused", reason)
            del sound[client]
        self.events.sort(key=lambda e: (self._order(e.phase), e))
        return sound

    def _expected(self, reply: Reply) -> bool:
        """Whether it answers this request and comes from who was asked; else it is an event."""
        assert self.request is not None
        own, asked = (reply.round, reply.phase), (self.request.round, self.request.phase)
        phases = [phase.name for phase in self._method.phases]
        if not isinstance(reply.client, str) or reply.client not in self._clients:
            self._note(str(reply.client), "refused", "no client of this server")
        elif type(reply.round) is not int or reply.phase not in phases:
            self._note(reply.client, "refused", f"answers {reply.phase!r} of {reply.round!r}")
        elif reply.round < self.number or (
            reply.round == self.number and phases.index(reply.phase) < self._index
        ):
            self._note(reply.client, "late", f"answers {reply.phase!r} of round {reply.round}")
        elif own != asked:
            self._note(reply.client, "refused", f"answers {reply.phase!r} of round {reply.round}")
        elif reply.client not in self.participants:
            self._note(reply.client, "refused", "was not asked")
        else:
            return True
        return False

    def _flaw(self, came: list[Reply], like: Arrays) -> str | None:
        first = came[0]
        if type(first.samples) is not int or not 1 <= first.samples <= self._bounds.samples:
            return f"claims {first.samples!r} samples"
        if self._samples.get(first.client, first.samples) != first.samples:
            return f"claims {first.samples} samples after {self._samples[first.client]}"
        for reply in came:
            flaw = flaw_of(reply.arrays, like, self._bounds.norm)
            if flaw is not None:
                return flaw
        same = all(
            r.samples == first.samples and all(r.arrays[n].equal(first.arrays[n]) for n in like)
            for r in came
        )
        return None if same else "sent answers that differ"

    def _note(self, client: str, kind: str, reason: str) -> None:
        assert self.request is not None
        self.events.append(Event(client, self.request.phase, kind, reason))

    def _order(self, phase: str) -> int:
        return [p.name for p in self._method.phases].index(phase)


def _weight(reply: Reply) -> int:
    """Bytes of an answer of which nothing is checked yet."""
    try:
        return payload(reply.arrays)
    except (AttributeError, TypeError):
        return 0
