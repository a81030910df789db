"""Several examples in one row are trained as if each stood alone."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from language_models import llama
from rankwise.recipes.language import evaluate, loss_of, loss_sum
from rankwise.recipes.language_rows import Tokens
from rankwise.recipes.packing import IGNORED, batch_of, check_apart, packed


def examples(*sizes: int, seed: int = 0) -> list[Tokens]:
    draw = random.Random(seed)
    found = []
    for size in sizes:
        counted = [draw.random() < 0.7 for _ in range(size - 1)] + [True]
        found.append(Tokens([draw.randrange(320) for _ in range(size)], counted, size // 2))
    return found


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_packing_keeps_every_example_once_and_no_row_too_long(sizes):
    given_ = examples(*sizes)
    rows = packed(given_, 12)
    assert sorted(map(id, (e for row in rows for e in row))) == sorted(map(id, given_))
    assert all(sum(len(e.ids) for e in row) <= 12 for row in rows)
    # No two rows would fit into one: fewer than twice as many rows as needed.
    full = sorted(sum(len(e.ids) for e in row) for row in rows)
    assert len(full) == 1 or full[0] + full[1] > 12


def test_packed_rows_have_the_loss_and_gradients_of_the_examples_one_by_one():
    model = llama().double()
    parts = examples(5, 9, 3, 7, 12, 2, 4)
    rows = packed(parts, 16)
    assert len(rows) < len(parts) and max(map(len, rows)) > 1
    loss_of(model, rows).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sums = [loss_sum(model, batch_of([[part]])) for part in parts]
    alone = sum(total for total, _ in sums) / sum(count for _, count in sums)
    alone.backward()
    torch.testing.assert_close(loss_of(model, rows), alone, atol=1e-10, rtol=0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(together[name], p.grad, atol=1e-10, rtol=0)
    assert evaluate(model, rows).mean == pytest.approx(alone.item(), abs=1e-10)


def test_another_example_in_the_row_changes_no_logit():
    model = llama().double()
    first, second, other = examples(6, 8, 6)
    assert first.ids != other.ids

    def logits(*row: Tokens) -> torch.Tensor:
        batch = batch_of([list(row), examples(16)])  # A longer row beside: there is filling too.
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        return model(**inputs, use_cache=False).logits[0]

    one, another = logits(first, second), logits(other, second)
    assert torch.equal(one[6:14], another[6:14])
    assert not torch.equal(one[:6], another[:6])
    alone = logits(second)
    torch.testing.assert_close(one[6:14], alone[:8], atol=1e-10, rtol=0)


def test_the_first_token_of_an_example_is_never_predicted():
    batch = batch_of([examples(3, 4), examples(9)])
    assert batch["labels"][0, [0, 3, 7, 8]].tolist() == [IGNORED] * 4
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]


def test_a_model_that_takes_no_notice_of_positions_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0
    )
    with pytest.raises(ValueError, match="does not keep apart.*--no-pack"):
        check_apart(Renamed(MambaForCausalLM(config).eval()), [examples(6, 8)])
    check_apart(llama(), [examples(6, 8)])


class Renamed(torch.nn.Module):
    """Mamba's recurrence runs through a row, and takes no positions."""

    def __init__(self, mamba) -> None:
        super().__init__()
        self.mamba = mamba

    def forward(self, input_ids, position_ids, use_cache):
        return self.mamba(input_ids=input_ids, use_cache=use_cache)
