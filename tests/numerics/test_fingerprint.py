"""A fingerprint knows a matrix again in another precision, and no other matrix."""

import pytest
import torch

from rankwise.numerics.fingerprint import (
    SIZE,
    Likeness,
    difference,
    fingerprint,
    likeness,
    places,
)


def weight(seed: int, m: int = 30, n: int = 50, size: float = 0.02) -> torch.Tensor:
    return size * torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


W = weight(0)


def kind(a: torch.Tensor, b: torch.Tensor) -> Likeness:
    return likeness(fingerprint(a), fingerprint(b))


@pytest.mark.parametrize("size", [1e-6, 0.02, 100.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_copy_in_a_shorter_type_is_the_same_matrix_rounded_both_ways(dtype, size):
    W = weight(0, size=size)
    short = W.to(dtype)
    assert kind(W, short) is Likeness.ROUNDED
    assert kind(short, W) is Likeness.ROUNDED
    assert kind(short, short.float()) is Likeness.SAME


def test_what_float16_makes_of_small_bfloat16_numbers_is_no_other_matrix():
    short = weight(0)
    short[:, ::7] *= 1e-4
    short = short.bfloat16()
    assert not torch.equal(short.half().float(), short.float())
    assert kind(short, short.half()) is Likeness.ROUNDED


def test_two_short_types_of_one_matrix_are_known_as_such():
    assert kind(W.bfloat16(), W.half()) is Likeness.ROUNDED
    assert kind(W.double(), W) is Likeness.SAME


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_step_of_training_makes_it_another(dtype):
    moved = (W + 1e-2 * weight(1)).to(dtype)
    assert kind(W.to(dtype), moved) is Likeness.OTHER
    assert difference(fingerprint(W), fingerprint(moved)) == pytest.approx(0.01, rel=0.3)


def test_another_matrix_is_another_whatever_its_type():
    for dtype in (torch.float32, torch.bfloat16):
        assert kind(W, weight(1).to(dtype)) is Likeness.OTHER
    assert 1.0 < difference(fingerprint(W), fingerprint(weight(1))) < 1.9


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (8, 8), (9, 8), (384, 384), (7, 3, 3)])
def test_the_sample_is_of_the_size_and_the_norm_of_the_matrix(shape):
    X = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    mark = fingerprint(X)
    assert mark.values.shape == (min(SIZE, X.numel()),)
    if X.numel() > SIZE:
        assert mark.rms == pytest.approx(float(X.square().mean().sqrt()), rel=0.35)
    else:
        torch.testing.assert_close(mark.values, X.reshape(-1))
    assert set(mark.values.tolist()) <= set(X.reshape(-1).tolist())


def test_places_spread_over_rows_and_columns():
    at = torch.tensor(places(384 * 384))
    assert len(set((at // 384).tolist())) > 50 and len(set((at % 384).tolist())) > 50
    assert len(set(at.tolist())) == SIZE


def test_the_layout_in_memory_does_not_matter():
    assert torch.equal(fingerprint(W).values, fingerprint(W.mT.contiguous().mT).values)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(4, 4, dtype=torch.uint8),
        torch.ones(4, 4).to(torch.float8_e4m3fn),
        torch.empty(4, 4, device="meta"),
        torch.empty(0, 4),
        torch.ones(4, 4).to_sparse(),
    ],
    ids=["packed", "one byte", "meta", "empty", "sparse"],
)
def test_what_cannot_be_compared_has_none(tensor):
    assert fingerprint(tensor) is None


def test_matrices_of_other_sizes_are_others():
    assert kind(weight(0, 3, 4), W) is Likeness.OTHER
    assert difference(fingerprint(weight(0, 3, 4)), fingerprint(W)) == float("inf")
