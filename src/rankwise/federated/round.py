"""One round at the server: asks phase by phase, and combines the sound answers."""

from collections.abc import Iterable
from typing import Any

from rankwise.federated.bounds import Bounds
from rankwise.federated.mean import weighted_mean
from rankwise.federated.message import Arrays, Reply, Request, payload
from rankwise.federated.outline import Outline
from rankwise.federated.phase import Method
from rankwise.federated.record import Event
from rankwise.federated.screening import Question, screened


class Round:
    """Made by `Server.open_round`; knows nothing of how messages travel.

    `request` is what to ask each of `participants` next, None at the end. Give all that came to
    `receive`, once for each request. Who has not answered is not asked again in this round.
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
        self.number, self.asked, self.participants = number, participants, participants
        self.down = self.up = 0
        self.events: list[Event] = []
        self.request: Request | None = None
        self.state: Arrays | None = None
        """The new one, after the last phase; None in a void round."""
        self._phases, self._outline, self._known = method.phases, outline, dict(state)
        self._clients, self._quorum, self._bounds = clients, quorum, bounds
        self._samples: dict[str, int] = {}
        self._index = 0
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
        return self._phases[self._index].reply_like(self._outline, self._known)

    def receive(self, answers: Iterable[Any]) -> None:
        """Take what came since the last request: each a `Reply` or `Failure`, in any order.

        Answers to earlier requests, to this one from others, twice or not as asked, become events;
        no message from a client raises an error.

        Raises:
            ValueError: after the end of the round.
        """
        question = self._question()
        messages = list(answers)
        self.up += sum(_received(message) for message in messages)
        sound, events = screened(question, messages)
        self.events += events
        self.participants = tuple(sorted(sound))
        self._samples = {client: reply.samples for client, reply in sound.items()}
        if len(sound) < self._quorum:
            self.request = None
        else:
            self._combine({client: reply.arrays for client, reply in sound.items()})

    def _question(self) -> Question:
        return Question(
            self.number,
            [phase.name for phase in self._phases],
            self._index,
            self.participants,
            self._clients,
            self._samples,
            self.expected,
            self._bounds,
        )

    def _combine(self, answers: dict[str, Arrays]) -> None:
        mean = weighted_mean(answers, self._samples)
        news = self._phases[self._index].combine(self._outline, self._known, mean, self.number)
        self._index += 1
        if self._index == len(self._phases):
            self.request, self.state = None, news
        else:
            # Not in place: the first request holds the dict, and may be on its way again.
            self._known = self._known | news
            self._ask(news)

    def _ask(self, arrays: Arrays) -> None:
        self.request = Request(self.number, self._phases[self._index].name, arrays)
        self.down += payload(arrays) * len(self.participants)


def _received(message: Any) -> int:
    """Bytes of a message of which nothing is checked yet."""
    try:
        return payload(message.arrays) if isinstance(message, Reply) else 0
    except Exception:
        return 0
