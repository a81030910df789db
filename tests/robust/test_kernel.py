"""Norms of convolutions, against the whole matrix of the operator."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankwise.nn import LowRankConv1d, LowRankConv2d, TuckerConv2d
from rankwise.numerics.init import truncated_svd, variance_preserving
from rankwise.numerics.tucker import variance_preserving_tucker
from rankwise.robust.weights import KERNELS

LIKE = torch.empty(0, dtype=torch.float64)


def operator(layer: nn.Module, *shape: int) -> torch.Tensor:
    """The matrix of a layer without its bias, (numbers out, numbers in)."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        return (layer(units) - zero).flatten(1).mT


def norm_of(layer: nn.Module, *shape: int) -> float:
    return float(torch.linalg.matrix_norm(operator(layer, *shape), 2))


def bound_of(layer: nn.Module, size: tuple[int, int], gain: torch.Tensor | None = None) -> float:
    return KERNELS[type(layer)](layer, gain).norm(size)


def conv(into, out, kernel, **moves) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, dtype=torch.float64, **moves)


@given(
    seed=st.integers(0, 2**20),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 3),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_no_convolution_exceeds_its_bound(seed, kernel, stride, padding, dilation, groups, size):
    reached = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(max(n, r - 2 * padding, 1) for n, r in zip(size, reached, strict=True))
    torch.manual_seed(seed)
    moves = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    layer = conv(2, 4, kernel, **moves)
    kernels = KERNELS[nn.Conv2d](layer, None)
    exact = norm_of(layer, 2, *size)
    assert kernels.torus_bound(size) >= exact
    assert kernels.patch_bound() >= exact
    assert kernels.norm(size) == pytest.approx(
        min(kernels.torus_bound(size), kernels.patch_bound()), rel=1e-6
    )


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_the_torus_bound_is_close_for_images_that_are_large_beside_the_kernel(stride, dilation):
    for seed in range(5):
        torch.manual_seed(seed)
        layer = conv(2, 3, 3, stride=stride, dilation=dilation, padding=dilation)
        bound = KERNELS[nn.Conv2d](layer, None).torus_bound((14, 14))
        exact = norm_of(layer, 2, 14, 14)
        assert exact <= bound <= 1.12 * exact


def test_a_periodic_convolution_has_the_torus_bound_as_its_norm():
    torch.manual_seed(0)
    layer = conv(2, 3, 3)
    periodic = conv(2, 3, 3, padding=1, padding_mode="circular")
    periodic.load_state_dict(layer.state_dict())
    bound = KERNELS[nn.Conv2d](layer, None).torus_bound((5, 6))
    assert bound == pytest.approx(norm_of(periodic, 2, 7, 8), rel=1e-8)


@pytest.mark.parametrize("stride", [(2, 1), (1, 3), (2, 2)])
def test_a_periodic_convolution_with_stride_too(stride):
    torch.manual_seed(0)
    layer = conv(2, 3, 3, stride=stride)
    periodic = conv(2, 3, 3, padding=1, stride=stride, padding_mode="circular")
    periodic.load_state_dict(layer.state_dict())
    bound = KERNELS[nn.Conv2d](layer, None).torus_bound((4, 7))
    torus = [s * math.ceil((n + 2) / s) for n, s in zip((4, 7), stride, strict=True)]
    assert bound == pytest.approx(norm_of(periodic, 2, *torus), rel=1e-8)


def test_patches_that_do_not_overlap_have_the_norm_of_the_matrix():
    torch.manual_seed(0)
    layer = conv(3, 5, 4, stride=4)
    assert bound_of(layer, (8, 8)) == pytest.approx(norm_of(layer, 3, 8, 8), rel=1e-8)


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    kernels = KERNELS[nn.Conv2d](conv(3, 4, 3, stride=2), None)
    whole = kernels.torus_bound((7, 8))
    monkeypatch.setattr("rankwise.robust.kernel.CHUNK", 1)
    assert kernels.torus_bound((7, 8)) == pytest.approx(whole, rel=1e-13)


def low_rank(rank: int, **moves) -> LowRankConv2d:
    draw = torch.Generator().manual_seed(1)
    f = variance_preserving(6, 4 * 9, rank, like=LIKE, generator=draw)
    S = torch.randn(rank, rank, dtype=torch.float64, generator=draw)
    return LowRankConv2d(f._replace(S=S), 3, **moves)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("moves", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
@pytest.mark.parametrize("gained", [False, True])
def test_factors_have_the_bounds_of_their_product(rank, moves, gained):
    gain = torch.tensor([0.1, -3, 1, 0, 2, 1], dtype=torch.float64) if gained else None
    layer = low_rank(rank, **moves)
    dense = bound_of(layer.dense_layer(), (7, 8), gain)
    assert bound_of(layer, (7, 8), gain) == pytest.approx(dense, rel=1e-10)


@pytest.mark.parametrize("gained", [False, True])
def test_so_have_tucker_factors(gained):
    gain = torch.tensor([0.1, -3, 1, 0, 2, 1], dtype=torch.float64) if gained else None
    f = variance_preserving_tucker(
        6, 5, (3, 2), (3, 2), like=LIKE, generator=torch.Generator().manual_seed(0)
    )
    for move in ({}, {"stride": 2, "padding": 1}):
        layer = TuckerConv2d(f, **move)
        dense = bound_of(layer.dense_layer(), (7, 8), gain)
        assert bound_of(layer, (7, 8), gain) == pytest.approx(dense, rel=1e-10)


def test_one_dimension_is_an_image_of_height_one():
    torch.manual_seed(0)
    plain = nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64)
    assert 0.9 * bound_of(plain, (1, 9)) <= norm_of(plain, 4, 9) <= bound_of(plain, (1, 9))
    f = variance_preserving(6, 12, 2, like=LIKE, generator=torch.Generator().manual_seed(0))
    thin = LowRankConv1d(f, 3, dilation=2)
    dense = bound_of(thin.dense_layer(), (1, 9))
    assert bound_of(thin, (1, 9)) == pytest.approx(dense, rel=1e-10)


def test_bases_that_are_not_orthonormal_do_not_break_the_bound():
    layer = low_rank(3)
    with torch.no_grad():
        layer.U.mul_(2.0)
        layer.V.add_(0.1)
    exact = norm_of(layer, 4, 6, 6)
    assert exact <= bound_of(layer, (6, 6)) <= 1.3 * exact


def test_a_core_of_deficient_rank_and_a_kernel_of_zeros():
    layer = low_rank(3)
    with torch.no_grad():
        layer.S[2] = layer.S[1]
    dense = bound_of(layer.dense_layer(), (6, 6))
    assert bound_of(layer, (6, 6)) == pytest.approx(dense, rel=1e-10)
    with torch.no_grad():
        layer.S.zero_()
    assert bound_of(layer, (6, 6)) == 0.0


def test_other_paddings_are_refused():
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        bound_of(conv(2, 2, 3, padding=1, padding_mode="reflect"), (5, 5))


def test_a_float32_kernel_is_taken_in_float64():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    assert bound_of(layer, (6, 6)) >= norm_of(layer.double(), 3, 6, 6)


def test_cut_weights_have_less_than_the_whole():
    torch.manual_seed(0)
    layer = conv(4, 6, 3)
    cut = LowRankConv2d(truncated_svd(layer.weight.detach().flatten(1), 2), 3)
    assert KERNELS[LowRankConv2d](cut, None).patch_bound() == pytest.approx(
        KERNELS[nn.Conv2d](layer, None).patch_bound(), rel=1e-8
    )
