"""What happened in a round."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Event(NamedTuple):
    """Something that was not as asked for."""

    client: str
    phase: str
    """Of the round when it happened."""
    kind: str
    """"dropped" (no answer), "late" (came when it was no more expected) or "refused"."""
    reason: str

    def __str__(self) -> str:
        return f"{self.client} {self.kind} in {self.phase}: {self.reason}"


@dataclass(frozen=True)
class RoundRecord:
    """One round.

    Args:
        number: from 0.
        participants: those asked at first.
        answered: those whose answers are in the new state; none of a void round.
        ranks: by layer, after the round.
        down: bytes sent to clients.
        up: bytes received from clients, refused and late answers too.
        events: what was not as asked for, in order.
        void: whether too few answered and the state is as before.
    """

    number: int
    participants: tuple[str, ...]
    answered: tuple[str, ...]
    ranks: dict[str, int] = field(default_factory=dict)
    down: int = 0
    up: int = 0
    events: tuple[Event, ...] = ()
    void: bool = False
