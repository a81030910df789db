"""The order of the data."""

import pytest

from rankwise.recipes.examples import Example, batch_at, split


@pytest.mark.parametrize("count, size", [(10, 3), (9, 3), (5, 8), (1, 1)])
def test_an_epoch_sees_every_example_at_most_once_and_the_next_has_another_order(count, size):
    steps = count // min(size, count)
    epochs = [
        [
            i
            for s in range(steps)
            for i in batch_at(e * steps + s, count=count, batch_size=size, seed=3)
        ]
        for e in range(4)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == steps * min(size, count)
        assert set(epoch) <= set(range(count))
    if count > 4:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_step_and_seed_alone():
    batches = [batch_at(7, count=50, batch_size=4, seed=s) for s in (0, 0, 1)]
    assert batches[0] == batches[1] != batches[2]


def test_a_split_loses_nothing():
    examples = [Example(str(i), 0) for i in range(20)]
    train, held_out = split(examples, 6, seed=0)
    assert len(held_out) == 6
    assert sorted(train + held_out) == sorted(examples)
