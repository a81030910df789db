"""Messages of many tensors, and the mark by which processes compare what they hold."""

import pytest
import torch

from rankwise.distributed.flat import digest, flatten, pieces, same_everywhere


def some_tensors(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(dtype) for shape in [(3, 2), (), (0, 4), (5,)]]


def test_pieces_undo_flatten():
    tensors = [*some_tensors(), torch.arange(3.0, dtype=torch.float64)]
    flat = flatten(tensors)
    assert flat.shape == (15,)
    for t, back in zip(tensors, pieces(flat, tensors), strict=True):
        assert back.dtype == t.dtype and torch.equal(back, t)


def test_a_shorter_type_rounds_and_no_more():
    tensors = some_tensors()
    back = pieces(flatten(tensors, torch.bfloat16), tensors)
    for t, b in zip(tensors, back, strict=True):
        assert torch.equal(b, t.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_digest_sees_every_single_bit(dtype):
    tensors = some_tensors(dtype)
    mark = digest(tensors)
    assert mark == digest([t.clone() for t in tensors])
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    seen = {int(mark)}
    for bit in range(0, torch.iinfo(words).bits - 1):
        changed = [t.clone() for t in tensors]
        changed[3].view(words)[4] ^= 1 << bit
        seen.add(int(digest(changed)))
    assert len(seen) == torch.iinfo(words).bits


def test_the_digest_sees_an_exchange_and_the_sign_of_zero():
    t = torch.tensor([1.0, 2.0, 0.0])
    assert digest([t]) != digest([t[[1, 0, 2]]])
    assert digest([t]) != digest([torch.tensor([1.0, 2.0, -0.0])])


def test_the_digest_is_in_its_range_for_wild_bits():
    t = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38])
    for count in range(1, 200):
        assert 0 <= int(digest([t.repeat(count)])) < 2**62


def test_the_digest_takes_tensors_of_several_types():
    mixed = [torch.ones(3, dtype=torch.bfloat16), torch.tensor(2**53 + 1)]
    assert digest(mixed) != digest([mixed[0], torch.tensor(2**53)])


def test_nothing_is_the_same_everywhere():
    assert same_everywhere([], None)
