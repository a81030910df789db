"""What server and clients say to each other: plain tensors by name, and who says it when."""

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Arrays: TypeAlias = dict[str, Tensor]
"""Tensors on the CPU by flat names, such as `<layer>.U`, `<layer>.K` or `<parameter>`."""


@dataclass(frozen=True)
class Request:
    """What the server asks of every participant.

    Args:
        round: number of the round, >= 0.
        phase: name of what is asked, such as "gradient".
        arrays: what a client has to know for it and was not told before in this round.
    """

    round: int
    phase: str
    arrays: Arrays


@dataclass(frozen=True)
class Reply:
    """The answer of one client.

    Args:
        client: its name.
        round: of the request.
        phase: of the request.
        samples: how many the client has, its weight in all means, >= 1.
        arrays: what was asked for.
    """

    client: str
    round: int
    phase: str
    samples: int
    arrays: Arrays


@dataclass(frozen=True)
class Failure:
    """No answer will come.

    Args:
        client: its name.
        reason: what is known of it, for the record.
    """

    client: str
    reason: str


def payload(arrays: Arrays) -> int:
    """Bytes of the numbers in a message; what a transport adds to them is its own."""
    return sum(t.numel() * t.element_size() for t in arrays.values())
