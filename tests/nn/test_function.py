"""The fused product beside the sum that it stands for, and the names of torch that it rests on."""

import pytest
import torch
from torch import Tensor

from rankwise.nn.function import WIDE, LowRankProduct, _apply_plainly, low_rank_product


def parts(m: int, n: int, r: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(m + n + r)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    bases = torch.linalg.qr(normal(m, r))[0].contiguous(), torch.linalg.qr(normal(n, r))[0]
    return [normal(3, 5, n), bases[0], normal(r, r), bases[1].contiguous(), normal(m, n), normal(m)]


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("r", [1, WIDE - 1, WIDE, 2 * WIDE])
@pytest.mark.parametrize("with_base, with_bias", [(True, True), (True, False), (False, True)])
def test_both_orientations_are_the_dense_product_and_its_tangent_gradient(
    r, with_base, with_bias, scale
):
    x, U, S, V, W0, b = parts(40, 36, r)
    W0, b = (W0 if with_base else None), (b if with_bias else None)
    inputs = [t.clone().requires_grad_() for t in (x, U, S, V)]
    y = low_rank_product(*inputs, W0, b, scale=scale)
    W = (0.0 if W0 is None else W0) + scale * U @ S @ V.mT
    torch.testing.assert_close(y, torch.nn.functional.linear(x, W, b), rtol=1e-12, atol=1e-12)
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    dx, dK, dS, dL = torch.autograd.grad(y, inputs, dy)
    G = scale * dy.flatten(0, 1).mT @ x.flatten(0, 1)
    expected = dy @ W, G @ V, U.mT @ G @ V, G.mT @ U
    for got, wanted in zip((dx, dK, dS, dL), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_called_plainly_it_is_the_function_that_torch_calls():
    """`_apply_plainly` is what `Function.apply` comes to without transforms, a name of torch's."""
    inputs = parts(6, 4, 2)
    plain = _apply_plainly(*(t.requires_grad_() for t in inputs[:4]), *inputs[4:], 1.0)[0]
    usual = LowRankProduct.apply(*inputs, 1.0)[0]
    assert torch.equal(plain, usual)
    assert type(plain.grad_fn) is type(usual.grad_fn)


def test_names_of_torch_without_a_promise_that_are_in_use():
    assert not torch._C._are_functorch_transforms_active()
    assert not torch._C._functorch.is_batchedtensor(torch.ones(1))
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(torch._C._are_functorch_transforms_active())
        seen.append(torch._C._functorch.is_batchedtensor(x))
        return x

    torch.vmap(look)(torch.ones(2))
    assert seen == [True, True]
    flag = torch.zeros(1)
    values = [torch.ones(2), torch.tensor([1.0, float("nan")])]
    for value, broken in zip(values, (0.0, 1.0), strict=True):
        before = value.clone()
        torch._amp_foreach_non_finite_check_and_unscale_([value], flag, torch.ones(1))
        assert flag.item() == broken
        assert torch.equal(value.nan_to_num(), before.nan_to_num())
