"""Local data: whole passes and seeded batches."""

import pytest
import torch

from rankwise.federated import Samples


def taken(batches) -> list[list[int]]:
    return [x.tolist() for x, *_ in batches]


def test_the_whole_is_every_sample_once_in_order():
    data = Samples(torch.arange(7), torch.arange(7) * 10, batch_size=3)
    assert taken(data.whole()) == [[0, 1, 2], [3, 4, 5], [6]]
    assert all((y == 10 * x).all() for x, y in data.whole())
    assert taken(Samples(torch.arange(3)).whole()) == [[0, 1, 2]]
    assert len(data) == 7


def test_batches_are_full_shuffled_passes():
    batches = taken(Samples(torch.arange(7), torch.arange(7), batch_size=3).batches(7, 0))
    flat = [i for batch in batches for i in batch]
    assert [len(batch) for batch in batches] == [3] * 7
    assert all(sorted(flat[7 * k : 7 * (k + 1)]) == list(range(7)) for k in range(3))


def test_batches_depend_on_seed_and_key_alone():
    first, same = (Samples(torch.arange(50), batch_size=5) for _ in range(2))
    other = Samples(torch.arange(50), batch_size=5, seed=1)
    assert taken(first.batches(4, 2)) == taken(first.batches(4, 2)) == taken(same.batches(4, 2))
    assert taken(first.batches(2, 2)) == taken(first.batches(4, 2))[:2]
    assert taken(first.batches(4, 2)) != taken(first.batches(4, 3))
    assert taken(first.batches(4, 2)) != taken(other.batches(4, 2))


@pytest.mark.parametrize("size", [None, 3, 8])
def test_a_batch_as_large_as_the_data_is_the_data(size):
    assert taken(Samples(torch.arange(3), batch_size=size).batches(2, 0)) == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    "tensors, options, error",
    [
        ([], {}, TypeError),
        ([[1, 2]], {}, TypeError),
        ([torch.ones(3), torch.ones(2)], {}, ValueError),
        ([torch.ones(0)], {}, ValueError),
        ([torch.tensor(1.0)], {}, ValueError),
        ([torch.ones(3)], {"batch_size": 0}, ValueError),
        ([torch.ones(3)], {"batch_size": 1.5}, TypeError),
        ([torch.ones(3)], {"seed": "x"}, TypeError),
    ],
)
def test_data_that_cannot_be_meant_are_refused(tensors, options, error):
    with pytest.raises(error, match="Samples"):
        Samples(*tensors, **options)
