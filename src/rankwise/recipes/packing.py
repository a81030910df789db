"""Short examples side by side in the rows of a batch, none of which sees another.

Positions start anew with each example. From these, transformers makes a mask of blocks, so that
attention stays inside an example.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankwise.recipes.language_rows import Tokens

IGNORED = -100
"""Label of a token that the loss does not count."""
Row = list[Tokens]
AGREE = 1e-2


def packed(examples: Sequence[Tokens], length: int) -> list[Row]:
    """Rows of at most `length` tokens: the longest first, each where least room is left.

    The rows come in the order of their first example in `examples`, which are no longer than that.
    """
    places: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for i in sorted(range(len(examples)), key=lambda i: -len(examples[i].ids)):
        size = len(examples[i].ids)
        at = bisect_left(room, (size, -1))
        if at == len(room):
            places.append([i])
            left, row = length - size, len(places) - 1
        else:
            left, row = room.pop(at)
            places[row].append(i)
            left -= size
        insort(room, (left, row))
    return [[examples[i] for i in sorted(row)] for row in sorted(places, key=min)]


def batch_of(rows: Sequence[Row]) -> dict[str, Tensor]:
    """`input_ids`, `position_ids` and `labels` (rows, places), filled up at the end.

    What fills up lies behind every token that counts, where a causal model does not look. The first
    token of an example has no label: nothing before it is its own.
    """
    longest = max(sum(len(example.ids) for example in row) for row in rows)
    ids, positions, labels = [], [], []
    for row in rows:
        missing = longest - sum(len(example.ids) for example in row)
        ids.append([token for example in row for token in example.ids] + [0] * missing)
        places = [place for example in row for place in range(len(example.ids))]
        positions.append(places + [places[-1] + 1 + i for i in range(missing)])
        labels.append([t for example in row for t in _labels(example)] + [IGNORED] * missing)
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "labels": torch.tensor(labels),
    }


@torch.no_grad()
def check_apart(model: nn.Module, rows: Sequence[Row]) -> None:
    """ValueError for a model that lets an example see those before it in its row."""
    row = next((row for row in rows if len(row) > 1), None)
    if row is None:
        return
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    together = batch_of([row])
    alone = batch_of([[row[1]]])
    start, size = len(row[0].ids), len(row[1].ids)
    logits = [_logits(model, batch, device)[0] for batch in (together, alone)]
    inside = logits[0][start : start + size]
    model.train(training)
    if (inside - logits[1]).norm() > AGREE * logits[1].norm():
        raise ValueError(
            "this model does not keep apart what stands in one row, as its attention takes no "
            "notice of positions that start anew: train it with --no-pack"
        )


def _labels(example: Tokens) -> list[int]:
    pairs = zip(example.ids, example.counted, strict=True)
    return [t if counts and i else IGNORED for i, (t, counts) in enumerate(pairs)]


def _logits(model: nn.Module, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits.float()
