"""The client: answers requests from its own data."""

from typing import Any

import torch
from torch import Tensor, nn

from rankwise.federated.bounds import flaw_of
from rankwise.federated.local import Local, Loss
from rankwise.federated.message import Arrays, Reply, Request
from rankwise.federated.outline import Outline, outline_of
from rankwise.federated.phase import Method
from rankwise.federated.samples import Samples
from rankwise.federated.seeds import seed_of, seeded
from rankwise.io.stored import join

KNOWN, OWN, CLOCK = "known/", "own/", "clock"


class Client:
    """One holder of data. `memory` has all that it must not forget within a round.

    Between requests the model is not used, so that clients of one process may share it; after a
    request it holds the state that the round started from.

    Args:
        name: unique among the clients, not empty.
        model: of the same layers as the server's; ranks may differ, and follow the server's.
        method: the same as the server's.
        loss: `loss(model, *batch)`, the mean over the samples of the batch, a 0-dim tensor.
        data: its samples.
    """

    def __init__(
        self, name: str, model: nn.Module, method: Method, loss: Loss, data: Samples
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"`name` must be a string that is not empty, got {name!r}")
        if not isinstance(method, Method):
            raise TypeError(f"`method` must be such as `FeDLRT()`, got {method!r}")
        if not isinstance(data, Samples):
            raise TypeError(f"`data` must be `Samples(x, y)`, got {type(data).__name__}")
        if not callable(loss):
            raise TypeError(f"`loss` must be a function of model and batch, got {loss!r}")
        self.name, self.model, self.method, self.loss, self.data = name, model, method, loss, data
        self.outline = outline_of(model)
        method.check(self.outline)
        self.memory: Arrays = {}

    def answer(self, request: Request) -> Reply:
        """Compute what is asked.

        Raises:
            ValueError: for a request that does not fit the model, the method or the phases before.
            FloatingPointError: where the answer is not finite: training diverged, or the data or
                the loss have NaN.
        """
        index = self._index(request)
        known = self._told(index, request)
        own = _part(self.memory, OWN) if index else {}
        phase = self.method.phases[index]
        opening = {n: known[n] for n in self._opening(known)}
        local = Local(self.model, self.loss, self.data, request.round)
        seed = seed_of(self.name, self.data.seed, request.round, phase.name)
        try:
            with seeded(seed, {p.device for p in self.model.parameters()}):
                arrays = phase.answer(local, self.outline, known, own)
        finally:
            local.put(opening)
        for name, value in arrays.items():
            if not bool(value.isfinite().all()):
                # Nothing but the last phase takes steps.
                last = index + 1 == len(self.method.phases)
                remedy = "try a smaller `lr` or fewer `steps`" if last else "see its data and loss"
                raise FloatingPointError(
                    f"client {self.name!r}: {name!r} is not finite after phase {phase.name!r} of "
                    f"round {request.round}; {remedy}"
                )
        # The memory of the phase before is kept after the last one, should that be asked for again.
        if index + 1 < len(self.method.phases):
            self.memory = (
                {KNOWN + n: t for n, t in known.items()}
                | {OWN + n: t for n, t in own.items()}
                | {CLOCK: torch.tensor([request.round, index])}
            )
        return Reply(self.name, request.round, request.phase, len(self.data), arrays)

    def _index(self, request: Any) -> int:
        """Which phase is asked for; ValueError unless it is the next of its round."""
        if not isinstance(request, Request):
            raise TypeError(f"`request` must be a Request, got {type(request).__name__}")
        names = [phase.name for phase in self.method.phases]
        if request.phase not in names:
            raise ValueError(
                f"client {self.name!r} was asked for phase {request.phase!r}; its method has "
                f"{', '.join(names)}"
            )
        index = names.index(request.phase)
        if index:
            clock = self.memory.get(CLOCK, torch.tensor([])).tolist()
            # The same phase again is a request that was repeated on its way.
            if clock not in ([request.round, index - 1], [request.round, index]):
                raise ValueError(
                    f"client {self.name!r} was asked for phase {request.phase!r} of round "
                    f"{request.round} and has not answered {names[index - 1]!r} of that round"
                )
        return index

    def _told(self, index: int, request: Request) -> Arrays:
        """All that is known with this request; ValueError for one that does not fit."""
        before: Arrays = {}
        if index == 0:
            like = self._opening(request.arrays)
        else:
            phases, before = self.method.phases, _part(self.memory, KNOWN)
            like = phases[index - 1].news_like(self.outline, before)
        flaw = flaw_of(request.arrays, like)
        if flaw is not None:
            raise ValueError(f"client {self.name!r} got a request that does not fit: {flaw}")
        known = before | {n: request.arrays[n] for n in like}
        if index == 0:
            self.method.check_state(self.outline, known)
        return known

    def _opening(self, arrays: Arrays) -> Arrays:
        """What a first request must hold, at the ranks that it has."""
        return self.outline.opening(ranks_in(self.outline, arrays))


def ranks_in(outline: Outline, arrays: Any) -> dict[str, int]:
    """The rank of each layer by its core; 1, which then fits nothing else, where there is none."""
    ranks = {}
    for layer, W in outline.layers.items():
        S = arrays.get(join(layer, "S")) if isinstance(arrays, dict) else None
        r = S.shape[0] if isinstance(S, Tensor) and S.ndim == 2 else 1
        ranks[layer] = min(max(r, 1), W.m, W.n)
    return ranks


def _part(memory: Arrays, prefix: str) -> Arrays:
    return {n.removeprefix(prefix): t for n, t in memory.items() if n.startswith(prefix)}
