"""Holding a model still."""

import pytest
import torch

from rankwise.robust.still import still
from victims import assert_same_state, images, network, state_of


def unevenly_set(model):
    model.train()
    model[1].eval()
    model[3].eval()
    model[4].weight.requires_grad_(False)
    return model


def test_within_nothing_trains():
    model = unevenly_set(network())
    with still(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())


def test_afterwards_every_module_and_parameter_is_what_it_was():
    model = unevenly_set(network())
    before = state_of(model)
    assert len(set(before["modes"])) == len(set(before["trained"])) == 2
    with still(model):
        model(images()[0])
    assert_same_state(model, before)


def test_on_an_exception_too():
    model = unevenly_set(network())
    before = state_of(model)
    with pytest.raises(RuntimeError, match="stop"), still(model):
        raise RuntimeError("stop")
    assert_same_state(model, before)


def test_a_backward_pass_that_waits_is_not_disturbed():
    model = network().eval()
    x, _ = images()
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = model(x).sum()
    with still(model):
        model(x)
    loss.backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p.grad, g)
