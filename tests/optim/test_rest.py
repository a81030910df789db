"""What a pass leaves out: gradients that no step uses, and the inputs that only they need."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.integrators import AugmentedBUG, BasisEvery, ParallelBUG
from rankwise.nn.function import low_rank_product
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.retract import truncate

EVERY = 4


def network(depth: int = 5) -> nn.Module:
    torch.manual_seed(1)
    layers = [part for _ in range(depth) for part in (nn.Linear(12, 12), nn.Tanh())]
    model = nn.Sequential(*layers).double()
    rw.adapt_(model, rank=3)
    return model


def backward(model: nn.Module, step: int) -> float:
    draw = torch.Generator().manual_seed(step % 8)
    x, y = torch.randn(2, 64, 12, dtype=torch.float64, generator=draw)
    loss = (model(x) - 0.3 * y.cumsum(1).sin()).square().mean()
    loss.backward()
    return loss.item()


def train(model: nn.Module, optimizer: rw.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        losses.append(backward(model, step))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages kept for backward, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("resting", [{"V"}, {"U"}, {"U", "V"}])
def test_what_does_not_rest_has_the_same_gradient(resting):
    model = network()
    twin = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, rw.LowRankLinear):
            module.resting = frozenset(resting)
    backward(model, 0)
    backward(twin, 0)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name[-1] in resting and p.requires_grad:
            assert p.grad is None
        elif q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-14, atol=0.0)


def test_a_resting_basis_keeps_no_input():
    U, S, V = (torch.randn(6, 2, requires_grad=True), torch.randn(2, 2, requires_grad=True), None)
    for trains in (True, False):
        V = torch.randn(6, 2, requires_grad=trains)
        x = torch.randn(100, 6)
        gone = weakref.ref(x)
        y = low_rank_product(x, U, S, V, torch.randn(6, 6))
        del x
        gc.collect()
        assert (gone() is not None) is trains
        y.sum().backward()


def test_layers_keep_their_inputs_in_turn():
    model = network()
    optimizer = rw.Optimizer(model, inputs_every=EVERY)
    kept = []
    for step in range(2 * EVERY):
        backward(model, step)
        kept.append([layer.V.grad is not None for _, layer in optimizer.layers])
        assert all(layer.U.grad is not None for _, layer in optimizer.layers)
        optimizer.step()
        optimizer.zero_grad()
    for step, own in enumerate(kept):
        assert own == [(step + place) % EVERY == 0 for place in range(len(own))]


def test_inputs_in_turn_save_their_bytes():
    x = torch.randn(1000, 12, dtype=torch.float64)
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(8))).double()
    rw.adapt_(model, rank=1)
    whole = saved_bytes(model, x)
    optimizer = rw.Optimizer(model, inputs_every=EVERY)
    # Eight inputs and eight products of them with `V`; two of the inputs are left.
    a = 1000 * 8
    assert whole == 8 * (12 * a + a)
    assert saved_bytes(model, x) == 2 * 12 * a + 8 * a
    del optimizer
    gc.collect()
    assert saved_bytes(model, x) == whole


@pytest.mark.parametrize(
    "rule, rank_rule",
    [
        (rw.Adam(), rw.FixedRank()),
        (rw.Adam(), rw.Tolerance(rtol=0.2, every=10, grow=2)),
        (rw.Spectral(), rw.FixedRank()),
    ],
    ids=repr,
)
def test_training_on_inputs_in_turn_descends_and_stays_on_the_manifold(rule, rank_rule):
    model = network()
    optimizer = rw.Optimizer(model, rule=rule, rank_rule=rank_rule, inputs_every=EVERY)
    losses = train(model, optimizer, 0, 120)
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    for _, layer in optimizer.layers:
        assert orthonormality_defect(layer.U.detach()) < 1e-12
        assert orthonormality_defect(layer.V.detach()) < 1e-12


def test_the_mean_stands_in_for_what_is_not_formed():
    """Of one gradient that stays the same the mean is that gradient, so nothing is lost."""
    model = network(1)
    sigma = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    model[0].set_factors_(model[0].factors()._replace(S=torch.diag(sigma)))
    twin = copy.deepcopy(model)
    sparing = rw.Optimizer(model, inputs_every=3, turns=1, lr=1e-9)
    whole = rw.Optimizer(twin, turns=1, lr=1e-9)
    for _ in range(6):
        for m, optimizer in ((model, sparing), (twin, whole)):
            backward(m, 0)
            optimizer.step()
            optimizer.zero_grad()
    # Frames may differ by signs: compared is what does not depend on them.
    for part in range(3):
        one, other = (o.state[o.layers[0].layer.U]["momentum"][part] for o in (sparing, whole))
        torch.testing.assert_close(one @ one.mT, other @ other.mT, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("low", [1, 2, 3])
def test_an_interrupted_run_rests_where_the_other_does(low):
    """In a stack with others too, of which a layer of a lower rank has some columns only."""
    model = network()
    for layer in (model[2], model[6]):
        layer.set_factors_(truncate(layer.factors(), low))
    optimizer = rw.Optimizer(model, inputs_every=EVERY)
    train(model, optimizer, 0, 6)
    twin = copy.deepcopy(model)
    other = rw.Optimizer(twin, inputs_every=EVERY)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, 6, 12) == train(twin, other, 6, 12)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_coefficient_phases_form_the_gradient_of_the_core_only():
    model = network()
    phases = BasisEvery(ParallelBUG(), every=3)
    optimizer = rw.Optimizer(model, integrator=phases, rule=rw.SGD(), lr=0.1)
    for step in range(7):
        before = [layer.U.detach().clone() for _, layer in optimizer.layers]
        backward(model, step)
        present = {p.grad is not None for _, layer in optimizer.layers for p in (layer.U, layer.V)}
        assert present == {step % 3 == 0}
        assert all(layer.S.grad is not None for _, layer in optimizer.layers)
        optimizer.step()
        optimizer.zero_grad()
        if step % 3:
            # The bases turn within the space that they span.
            for U, (_, layer) in zip(before, optimizer.layers, strict=True):
                torch.testing.assert_close(layer.U @ (layer.U.mT @ U), U)


def test_a_coefficient_step_is_gradient_descent_on_the_core():
    model = network(1)
    layer = model[0]
    optimizer = rw.Optimizer(
        model,
        integrator=BasisEvery(ParallelBUG(), every=2),
        rule=rw.SGD(),
        lr=0.5,
        max_step=float("inf"),
    )
    train(model, optimizer, 0, 1)
    backward(model, 1)
    f, dS = Factors(*(t.clone() for t in layer.factors())), layer.S.grad.clone()
    optimizer.step()
    expected = f.U @ (f.S - 0.5 * dS) @ f.V.mT
    torch.testing.assert_close(layer.factors().dense(), expected, rtol=1e-12, atol=1e-14)


def test_what_cannot_rest_is_refused_or_goes_on():
    with pytest.raises(ValueError, match="inputs_every"):
        rw.Optimizer(network(), inputs_every=0)
    with pytest.raises(TypeError, match="inputs_every"):
        rw.Optimizer(network(), inputs_every=True)
    with pytest.raises(ValueError, match="mean"):
        rw.Optimizer(network(), inputs_every=2, rule=rw.SGD())
    with pytest.raises(ValueError, match="AugmentedBUG"):
        rw.Optimizer(network(), inputs_every=2, integrator=AugmentedBUG())
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    rw.factorize_(conv, rank=2, select=["0"])
    optimizer = rw.Optimizer(conv, inputs_every=2)
    for _ in range(3):
        conv(torch.randn(4, 2, 4, 4)).square().mean().backward()
        assert conv[0].V.grad is not None
        optimizer.step()
        optimizer.zero_grad()


def test_copies_and_new_optimizers_start_awake():
    model = network()
    optimizer = rw.Optimizer(model, inputs_every=EVERY)
    assert any(layer.resting for _, layer in optimizer.layers)
    twin = copy.deepcopy(model)
    assert not any(m.resting for m in twin.modules() if isinstance(m, rw.LowRankLinear))
    newer = rw.Optimizer(model)
    assert not any(layer.resting for _, layer in newer.layers)


def test_an_earlier_optimizer_lets_the_layers_of_a_newer_one_alone():
    model = network()
    earlier = rw.Optimizer(model, inputs_every=EVERY)
    train(model, earlier, 0, 1)
    state = copy.deepcopy(earlier.state_dict())
    newer = rw.Optimizer(model, inputs_every=EVERY)
    resting = [layer.resting for _, layer in newer.layers]
    backward(model, 0)
    earlier.load_state_dict(state)
    assert [layer.resting for _, layer in newer.layers] == resting
    del earlier
    gc.collect()
    assert [layer.resting for _, layer in newer.layers] == resting
    newer.step()


@pytest.mark.parametrize("integrator", [ParallelBUG(), BasisEvery(ParallelBUG(), every=2)])
def test_a_layer_that_misses_its_turn_keeps_its_input_in_the_next_pass(integrator):
    """Two tasks in alternation, or two cycles of one length: a turn may never come."""
    model = network(4)
    optimizer = rw.Optimizer(model, integrator=integrator, inputs_every=2, turns=1)
    formed = set()
    for step in range(8):
        parts = model[4:] if step % 2 and isinstance(integrator, ParallelBUG) else model
        backward(parts, step)
        formed |= {name for name, layer in optimizer.layers if layer.V.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    assert formed == {name for name, _ in optimizer.layers}


def test_a_diagnosis_sees_all_of_a_gradient():
    model = network()

    def loss_of(step: int) -> Tensor:
        x = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        return model(x).square().mean()

    expected = rw.check.stationarity(model, loss_of, [0])
    names = {name for name, _ in model.named_modules()} & expected.keys()
    for name in names:
        model.get_submodule(name).resting = frozenset("UV")
    assert rw.check.stationarity(model, loss_of, [0]) == expected
    assert all(model.get_submodule(name).resting == {"U", "V"} for name in names)


@pytest.mark.parametrize("resting", ["", "V", "UV"])
def test_a_rank_that_changes_before_the_backward_pass_is_told(resting):
    model = network(1)
    model[0].resting = frozenset(resting)
    loss = model(torch.randn(3, 12, dtype=torch.float64)).sum()
    f = model[0].factors()
    model[0].set_factors_(Factors(f.U[:, :2].clone(), f.S[:2, :2].clone(), f.V[:, :2].clone()))
    with pytest.raises(RuntimeError, match="rank changed from 3 to 2"):
        loss.backward()
