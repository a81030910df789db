"""The shapes of a transformer of 7 billion parameters, from the model itself: no weight is made."""

from typing import NamedTuple

import torch

import rankwise as rw


class Shapes(NamedTuple):
    """What a model is made of."""

    maps: tuple[tuple[int, int], ...]
    """(out, in) of each linear map in its blocks."""
    rest: int
    """Numbers of all else: embedding, head, norms."""

    @property
    def total(self) -> int:
        return self.rest + sum(m * n for m, n in self.maps)


def transformer_shapes(blocks: int = 32) -> Shapes:
    """Of Llama 2 7B, whose configuration is the default of its class; with so many blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=blocks))
    plan = rw.plan(model, rank=1, exclude="lm_head")
    maps = tuple((m, n) for m, n in (layer.shape for layer in plan.adapted))
    return Shapes(maps, plan.total - sum(m * n for m, n in maps))
