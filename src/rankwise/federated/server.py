"""The server: keeps the state, draws participants, and opens and closes rounds."""

import math
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.check.base import fingerprints
from rankwise.federated.bounds import Bounds
from rankwise.federated.local import put_
from rankwise.federated.message import Arrays
from rankwise.federated.outline import outline_of, state_of
from rankwise.federated.phase import Method
from rankwise.federated.record import RoundRecord
from rankwise.federated.round import Round
from rankwise.io.document import read_document, write_document
from rankwise.io.fingerprint import check_base
from rankwise.io.path import given_path
from rankwise.io.state import check_fits, trained_tensors
from rankwise.io.state import put_ as put_stored_
from rankwise.io.stored import join, stored
from rankwise.io.training_arguments import check_progress
from rankwise.io.training_file import object_of
from rankwise.numerics.given import check_integer, check_number

FORMAT = "rankwise-federated"
VERSION = 1


class Server:
    """Holds the model that all clients train, in rounds.

    The state is the server's own. `model` has it after `close_round`, and may be used, or shared
    with clients of the same process, in between.

    Args:
        model: with low-rank layers for `FeDLRT`.
        method: the same as that of the clients.
        clients: their names, each once.
        participation: share of the clients that a round asks, in (0, 1]; drawn by `seed` and the
            number of the round alone.
        quorum: with fewer answers in a phase a round is void and the state stays, >= 1.
        bounds: for what clients send.
        seed: of the draws of participants.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        clients: Sequence[str],
        *,
        participation: float = 1.0,
        quorum: int = 1,
        bounds: Bounds | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"`method` must be such as `FeDLRT()`, got {method!r}")
        listed = isinstance(clients, Iterable) and not isinstance(clients, str)
        if not listed or not all(isinstance(c, str) and c for c in clients):
            raise TypeError(f"`clients` must be a list of names, got {clients!r}")
        if len(set(clients)) < len(clients) or not clients:
            raise ValueError(f"`clients` must name at least one, each once, got {list(clients)}")
        check_number("participation", participation)
        if not 0.0 < participation <= 1.0:
            raise ValueError(f"`participation` must be in (0, 1], got {participation}")
        check_integer("quorum", quorum)
        check_integer("seed", seed)
        self.model, self.method, self.clients = model, method, tuple(sorted(clients))
        self.count = max(1, math.floor(participation * len(clients) + 0.5))
        if not 1 <= quorum <= self.count:
            raise ValueError(
                f"`quorum` must be at least 1 and at most the {self.count} clients of a round, got "
                f"{quorum}"
            )
        if bounds is not None and not isinstance(bounds, Bounds):
            raise TypeError(f"`bounds` must be `Bounds(...)`, got {bounds!r}")
        self.quorum, self.bounds, self.seed = quorum, bounds or Bounds(), seed
        self.outline = outline_of(model)
        method.check(self.outline)
        self.number = 0
        self.state: Arrays = state_of(model)

    @property
    def ranks(self) -> dict[str, int]:
        """Of every low-rank layer by name."""
        return {layer: self.state[join(layer, "S")].shape[0] for layer in self.outline.layers}

    def open_round(self) -> Round:
        """The next round; the same one again until it is closed."""
        draw = random.Random(f"{self.seed}/{self.number}")
        asked = tuple(sorted(draw.sample(self.clients, self.count)))
        return Round(
            self.number, self.method, self.outline, self.state, asked, frozenset(self.clients),
            self.quorum, self.bounds,
        )  # fmt: skip

    def close_round(self, round: Round) -> RoundRecord:
        """Put the new state, or that of before if the round is void, into the model.

        Raises:
            ValueError: for a round that still asks something, or is not the one that is open.
        """
        if round.request is not None:
            raise ValueError(f"round {round.number} still asks for {round.request.phase!r}")
        if round.number != self.number:
            raise ValueError(f"round {round.number} is not the open one, {self.number}")
        self.state = self.state if round.state is None else round.state
        self.number += 1
        put_(self.model, self.state)
        answered = () if round.void else round.participants
        return RoundRecord(
            round.number, round.asked, answered, self.ranks, round.down, round.up,
            tuple(round.events), round.void,
        )  # fmt: skip

    def save(self, path: str | Path, progress: Mapping[str, Any] | None = None) -> None:
        """Write the state and the number of the next round, atomically, as one safetensors file.

        With `progress`, what JSON can hold, which `load` returns.

        Raises:
            TypeError: for a `progress` that JSON cannot hold. No file is written then.
            ValueError: for a state that `load` would refuse, with a NaN for example.
            OSError: naming the file, if the system cannot write it; what was there is as it was.
        """
        file = given_path(path, "path")
        own = {} if progress is None else progress
        check_progress(own)
        put_(self.model, self.state)
        tensors, content = trained_tensors(self.model)
        stored(file, tensors, content)
        document = {"model": content, "round": self.number, "progress": dict(own)}
        document |= {"draws": self._draws()}
        write_document(file, tensors, document, format=FORMAT, version=VERSION)

    def load(self, path: str | Path) -> dict[str, Any]:
        """Go on where `save` was called; ranks follow the file. Returns its `progress`.

        The file has the state of the model and the number of the next round. Method, names of the
        clients, participation and seed are those of this server; where they were others (of the
        method its kind, not its numbers), so that rounds do not go on as without a stop, there is a
        RuntimeWarning.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not of this model. The server is then unchanged.
        """
        document = read_document(given_path(path, "path"), format=FORMAT, version=VERSION)
        number = document.content.get("round")
        if type(number) is not int or number < 0:
            raise ValueError(f"{document.path}: 'round' must be a number, got {number!r}")
        model = object_of(document, "model")
        progress = object_of(document, "progress", default={})
        draws = object_of(document, "draws", default=self._draws())
        state = stored(document.path, document.tensors, model)
        check_fits(self.model, state)
        check_base(state.path, state.fingerprints, fingerprints(self.model))
        put_stored_(self.model, state)
        self.number, self.state = number, state_of(self.model)
        other = [name for name, own in self._draws().items() if draws.get(name) != own]
        if other:
            warnings.warn(
                f"{document.path} is of a server with other {' and '.join(other)}: rounds do not "
                "go on as they would have without a stop",
                RuntimeWarning,
                stacklevel=2,
            )
        return progress

    def _draws(self) -> dict[str, Any]:
        """What decides, beside the state, how rounds go on."""
        return {
            "method": type(self.method).__name__,
            "clients": list(self.clients),
            "participants of a round": self.count,
            "seed": self.seed,
        }
