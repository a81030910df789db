"""The phases of a FeDLRT round (Schotthoefer and Laiu, 2024).

Names in messages, for a layer `W = U S V^T` with gradient `G`: `.K` is `G V`, `.L` is `G^T U`,
`.G` is the gradient of the core, `.U~` and `.V~` are the columns by which the bases grow. For a
dense parameter `.G` is its gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankwise.federated.local import Local
from rankwise.federated.message import Arrays
from rankwise.federated.outline import Outline, Weight
from rankwise.federated.phase import Phase, Rate, factor_names, rate_at
from rankwise.federated.server_step import ServerStep
from rankwise.io.stored import join
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import augment, orthonormalise
from rankwise.numerics.retract import Frame, cut, decompose, embed
from rankwise.numerics.truncate import rank_for_tolerance

SLOTS = {"U": "K", "V": "L"}
"""Gradient slots of the bases: `K = G V` is that of `U`, `L = G^T U` that of `V`."""


@dataclass(frozen=True)
class Directions(Phase):
    """Clients send `G V` and `G^T U`; the bases grow by the range of the means.

    Args:
        batches: for the gradient; None takes all samples.
        dtype: in which directions travel, to the server and back; None for that of the factors.
    """

    batches: int | None
    dtype: torch.dtype | None = None
    name: ClassVar[str] = "gradient"

    def reply_like(self, outline: Outline, known: Arrays) -> Arrays:
        like: Arrays = {}
        for layer in outline.layers:
            for basis, slot in SLOTS.items():
                Q = known[join(layer, basis)]
                like[join(layer, slot)] = Q.to("meta", self.dtype or Q.dtype)
        return like

    def answer(self, local: Local, outline: Outline, known: Arrays, own: Arrays) -> Arrays:
        local.put(known)
        slots = local.gradient(factor_names(outline, "UV"), self.batches)
        return self.directions(outline, slots)

    def directions(self, outline: Outline, slots: Arrays) -> Arrays:
        """`G V` and `G^T U` by their names in messages."""
        found: Arrays = {}
        for layer in outline.layers:
            for basis, slot in SLOTS.items():
                X = slots[join(layer, basis)]
                found[join(layer, slot)] = X.to(self.dtype or X.dtype)
        return found

    def combine(self, outline: Outline, known: Arrays, mean: Arrays, round: int) -> Arrays:
        news: Arrays = {}
        for layer in outline.layers:
            for basis, slot in SLOTS.items():
                X = mean[join(layer, slot)]
                news[join(layer, f"{basis}~")] = grown_by(known[join(layer, basis)], X).to(X.dtype)
        return news

    def news_like(self, outline: Outline, known: Arrays) -> Arrays:
        like: Arrays = {}
        for layer, W in outline.layers.items():
            r = known[join(layer, "S")].shape[0]
            for basis, rows in (("U", W.m), ("V", W.n)):
                wide = W.like(rows, min(rows, 2 * r) - r)
                like[join(layer, f"{basis}~")] = wide.to(self.dtype or W.dtype)
        return like


@dataclass(frozen=True)
class DirectionsAndCores(Directions):
    """As `Directions`; clients also send the gradients of `S` and of dense parameters."""

    def reply_like(self, outline: Outline, known: Arrays) -> Arrays:
        return super().reply_like(outline, known) | _gradients_like(outline, known)

    def answer(self, local: Local, outline: Outline, known: Arrays, own: Arrays) -> Arrays:
        local.put(known)
        names = factor_names(outline, "USV") + list(outline.dense)
        slots = local.gradient(names, self.batches)
        own.update(_core_gradients(outline, slots))
        return self.directions(outline, slots) | own

    def combine(self, outline: Outline, known: Arrays, mean: Arrays, round: int) -> Arrays:
        means = {n: mean[n] for n in _gradients_like(outline, known)}
        return super().combine(outline, known, mean, round) | means

    def news_like(self, outline: Outline, known: Arrays) -> Arrays:
        return super().news_like(outline, known) | _gradients_like(outline, known)


@dataclass(frozen=True)
class Cores(Phase):
    """Clients send the gradients of the core in the grown bases, and of dense parameters.

    Args:
        batches: for the gradient; None takes all samples.
    """

    batches: int | None
    name: ClassVar[str] = "correction"

    def reply_like(self, outline: Outline, known: Arrays) -> Arrays:
        return _gradients_like(outline, grown(outline, known))

    def answer(self, local: Local, outline: Outline, known: Arrays, own: Arrays) -> Arrays:
        local.put(grown(outline, known))
        slots = local.gradient(list(_gradient_names(outline)), self.batches)
        own.update(_core_gradients(outline, slots))
        return dict(own)

    def combine(self, outline: Outline, known: Arrays, mean: Arrays, round: int) -> Arrays:
        return mean

    def news_like(self, outline: Outline, known: Arrays) -> Arrays:
        return self.reply_like(outline, known)


@dataclass(frozen=True)
class Train(Phase):
    """Clients train cores and dense parameters, bases fixed; the mean is cut to its rank.

    Args:
        lr: learning rate, or a function of the number of the round.
        steps: local ones.
        rtol: the cut may take away this share of the Frobenius norm of each core.
        min_rank, max_rank: bounds for every layer.
        server_step: from the mean of the cores to the new one.
    """

    lr: Rate
    steps: int
    rtol: float
    min_rank: int
    max_rank: int | None
    server_step: ServerStep
    name: ClassVar[str] = "train"

    def reply_like(self, outline: Outline, known: Arrays) -> Arrays:
        wide = grown(outline, known)
        names = [*_gradient_names(outline), *outline.statistics]
        return {n: wide[n].to("meta") for n in names}

    def answer(self, local: Local, outline: Outline, known: Arrays, own: Arrays) -> Arrays:
        wide, names = grown(outline, known), list(_gradient_names(outline))
        local.put(wide)
        drift = {
            n: embed_in(known[g] - own[g], wide[n])
            for n, g in _gradient_names(outline).items()
            if g in known
        }
        local.descend(names, self.steps, rate_at(self.lr, local.round), drift)
        return local.values([*names, *outline.statistics])

    def combine(self, outline: Outline, known: Arrays, mean: Arrays, round: int) -> Arrays:
        state = {n: mean[n] for n in (*outline.dense, *outline.statistics)}
        wide = grown(outline, known)
        for layer, W in outline.layers.items():
            frame = Frame(wide[join(layer, "U")], wide[join(layer, "V")])
            S = join(layer, "S")
            f = self._cut(frame, self.server_step.core(wide[S], mean[S], round), W)
            state |= {join(layer, name): t for name, t in f._asdict().items()}
        return state

    def _cut(self, frame: Frame, core: Tensor, W: Weight) -> Factors:
        spectrum = decompose(frame, core)
        rank = rank_for_tolerance(spectrum.sigma, rtol=self.rtol, min_rank=self.min_rank)
        f = cut(spectrum, min(rank, self.max_rank or rank))
        # Rounding would take the bases away from orthonormal ones, a little in every round.
        return Factors(orthonormalise(f.U), f.S, orthonormalise(f.V))


def grown_by(Q: Tensor, X: Tensor) -> Tensor:
    """The columns by which `Q` grows to a basis of `span[Q, X]`, at most to a square one."""
    return augment(Q, X.to(Q.dtype))[:, Q.shape[1] :].contiguous()


def grown(outline: Outline, known: Arrays) -> Arrays:
    """`[U | U~]`, `[[S, 0], [0, 0]]`, `[V | V~]`, and all that is dense: the same function."""
    wide = {n: known[n] for n in (*outline.dense, *outline.statistics)}
    for layer in outline.layers:
        for basis in "UV":
            name = join(layer, basis)
            Q, new = known[name], known[f"{name}~"]
            # What was rounded on its way is orthogonal to that accuracy only. To make it so again
            # is well-conditioned: every machine finds the same basis, to rounding.
            wide[name] = torch.cat([Q, new if new.dtype == Q.dtype else grown_by(Q, new)], dim=1)
        rows, columns = wide[join(layer, "U")].shape[1], wide[join(layer, "V")].shape[1]
        S = known[join(layer, "S")]
        wide[join(layer, "S")] = embed_in(S, S.new_empty(rows, columns))
    return wide


def embed_in(block: Tensor, whole: Tensor) -> Tensor:
    """`[[block, 0], [0, 0]]` in the shape of `whole`; a dense gradient has that shape already."""
    return block if block.shape == whole.shape else embed(block, whole)


def _gradient_names(outline: Outline) -> dict[str, str]:
    """What trains after the bases are fixed, and the names of its gradient."""
    cores = {join(layer, "S"): join(layer, "G") for layer in outline.layers}
    return cores | {n: f"{n}.G" for n in outline.dense}


def _core_gradients(outline: Outline, slots: Arrays) -> Arrays:
    return {g: slots[n] for n, g in _gradient_names(outline).items()}


def _gradients_like(outline: Outline, known: Arrays) -> Arrays:
    return {g: known[n].to("meta") for n, g in _gradient_names(outline).items()}
