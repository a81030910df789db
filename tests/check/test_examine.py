"""A live training examined: each disease is made, and found by its name alone."""

import copy

import pytest
import torch
from torch import nn

import rankwise as rw
from networks import adapter, batch, thin_layers, train
from rankwise.check import Verdict, examine, fingerprints


def loss_with(model):
    def loss_of(pair):
        x, y = pair
        return (model(x) - y).square().mean()

    return loss_of


def sick(model, optimizer, **options) -> dict[str, Verdict]:
    found = examine(model, optimizer, loss_with(model), batch(0), **options)
    return {f.name: f.verdict for f in found.bad}


def trained(steps: int = 10, **options) -> tuple[nn.Module, rw.Optimizer]:
    model = thin_layers()
    optimizer = rw.Optimizer(model, **options)
    train(model, optimizer, 0, steps)
    return model, optimizer


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_a_healthy_training_has_no_flaw(steps):
    model = thin_layers()
    marks = fingerprints(model)
    optimizer = rw.Optimizer(model, rank_rule=rw.Tolerance(every=5))
    train(model, optimizer, 0, steps)
    found = examine(model, optimizer, loss_with(model), batch(0), base=marks)
    assert not found.bad, str(found)
    assert found.worst is Verdict.OK
    assert {"attached layers", "base", "owned parameters"} <= {f.name for f in found}
    assert ("movement" in {f.name for f in found}) == (steps > 0)


def test_it_leaves_no_trace():
    model = nn.Sequential(adapter(), nn.BatchNorm1d(8, dtype=torch.float64), nn.Dropout(0.5))
    optimizer = rw.Optimizer(model)
    x = batch(0)[0]
    model(x).square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in grads]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert not examine(model, optimizer, lambda x: model(x).square().mean(), x).bad
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert all(g is None or torch.equal(g, v) for g, v in zip(grads, values, strict=True))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_without_low_rank_layers_is_told():
    model = nn.Sequential(nn.Linear(6, 2, dtype=torch.float64))
    assert sick(model, torch.optim.SGD(model.parameters())) == {"owned parameters": Verdict.FAULT}


def test_a_stock_optimizer_is_told():
    model = thin_layers()
    optimizer = torch.optim.AdamW(model.parameters())
    assert sick(model, optimizer) == {"owned parameters": Verdict.FAULT}
    assert "AdamW" in examine(model, optimizer).bad[0].seen


def test_factors_of_a_newer_optimizer_are_told():
    model, old = trained()
    newer = rw.Optimizer(model)
    assert sick(model, old) == {"owned parameters": Verdict.FAULT}
    assert sick(model, newer) == {}


def test_a_layer_that_came_after_the_optimizer_is_told():
    model, optimizer = trained()
    model.append(adapter(2, 2, 1))
    found = examine(model, optimizer, loss_with(model), batch(0)).bad
    # It has no owner, so nothing has trained it.
    assert {f.name for f in found} == {"owned parameters", "trained layers"}
    assert "5" in found[0].seen


def test_a_parameter_that_was_thawed_after_the_optimizer_was_made_is_told():
    model = thin_layers()
    model[4].bias.requires_grad_(False)
    optimizer = rw.Optimizer(model)
    model[4].bias.requires_grad_(True)
    assert sick(model, optimizer) == {"owned parameters": Verdict.FAULT}
    assert "4.bias" in examine(model, optimizer).bad[0].seen


def test_frozen_factors_are_told():
    model = thin_layers()
    for p in model[0].factor_parameters():
        p.requires_grad_(False)
    assert sick(model, rw.Optimizer(model)) == {"owned parameters": Verdict.WARNING}


def test_a_wrapped_optimizer_is_looked_through():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model, optimizer = trained()
    assert sick(model, Wrapper(optimizer)) == {}
    assert sick(model, Wrapper(Wrapper(optimizer))) == {}


def test_a_rate_of_zero_is_told():
    model = thin_layers()
    optimizer = rw.Optimizer(model, lr=0.0)
    assert sick(model, optimizer) == {"learning rate": Verdict.WARNING}
    train(model, optimizer, 0, 3)
    assert sick(model, optimizer) == {
        "learning rate": Verdict.FAULT,
        "trained layers": Verdict.FAULT,
    }


def test_a_rate_that_has_decayed_to_zero_is_fine():
    model, optimizer = trained()
    optimizer.param_groups[0]["lr"] = 0.0
    assert sick(model, optimizer) == {}


class Bypass(nn.Module):
    """Reads the weight of its first layer, and does not call it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = thin_layers()

    def forward(self, x):
        x = nn.functional.linear(x, self.model[0].weight, self.model[0].base.bias)
        return self.model[1:](x)


def test_a_layer_that_the_forward_pass_goes_past_is_told():
    model = Bypass()
    optimizer = rw.Optimizer(model)
    assert sick(model, optimizer) == {"attached layers": Verdict.FAULT}
    train(model, optimizer, 0, 5)
    found = examine(model, optimizer, loss_with(model), batch(0)).bad
    assert {f.name: f.verdict for f in found} == {
        "attached layers": Verdict.FAULT,
        "trained layers": Verdict.WARNING,
    }
    assert all("model.0" in f.seen for f in found)


def test_a_loss_without_a_graph_is_told():
    model, optimizer = trained()

    def loss_of(pair):
        return model(pair[0]).detach().square().mean()

    (found,) = examine(model, optimizer, loss_of, batch(0)).bad
    assert (found.name, found.verdict) == ("attached layers", Verdict.FAULT)


def test_a_gradient_of_zero_is_told():
    model = thin_layers()
    with torch.no_grad():
        model[2].base.bias.fill_(1e6)  # Saturates the units behind it.
    assert sick(model, rw.Optimizer(model)) == {"attached layers": Verdict.WARNING}


def test_a_gradient_that_is_not_finite_is_told():
    model, optimizer = trained()

    def loss_of(pair):
        return model(pair[0]).mul(0).sum().sqrt()

    (found,) = examine(model, optimizer, loss_of, batch(0)).bad
    assert (found.name, found.verdict) == ("attached layers", Verdict.FAULT)
    assert "not finite" in found.seen


def test_a_changed_base_is_told_and_a_rounded_one_noted():
    model = thin_layers()
    marks = fingerprints(model)
    optimizer = rw.Optimizer(model)
    train(model, optimizer, 0, 5)
    with torch.no_grad():
        model[2].base.weight.mul_(1.01)
    assert sick(model, optimizer, base=marks) == {"base": Verdict.FAULT}
    with torch.no_grad():
        model[2].base.weight.div_(1.01)
        for layer in (model[0], model[2]):
            layer.base.weight.copy_(layer.base.weight.bfloat16())
    assert sick(model, optimizer, base={n: m for n, m in marks.items() if n == "0"}) == {
        "base": Verdict.WARNING
    }


def test_a_base_that_trains_is_told():
    model = thin_layers()
    model[0].base.weight.requires_grad_(True)
    assert sick(model, rw.Optimizer(model)) == {"frozen base": Verdict.FAULT}


def test_a_merged_model_is_told():
    model, optimizer = trained()
    rw.merge_(model)
    found = examine(model, optimizer, loss_with(model), batch(0)).bad
    assert {f.name for f in found} == {"frozen base", "attached layers"}


def test_factors_that_lost_their_orthonormality_or_are_not_finite_are_told():
    model, optimizer = trained()
    with torch.no_grad():
        model[2].U.mul_(1.1)
    (found,) = examine(model, optimizer).bad
    assert (found.name, found.verdict) == ("orthonormal bases", Verdict.FAULT)
    assert "2.1e-01 in 2" in found.seen
    with torch.no_grad():
        model[2].U.div_(1.1)
        model[0].S[0, 0] = float("nan")
    assert [f.name for f in examine(model, optimizer).bad] == ["finite factors"]


def test_hardly_any_movement_is_told():
    model = thin_layers()
    optimizer = rw.Optimizer(model, lr=1e-7)
    train(model, optimizer, 0, 5)
    assert sick(model, optimizer) == {"movement": Verdict.WARNING}


def test_skipped_steps_are_told():
    model, optimizer = trained(2)
    for i in range(4):
        optimizer.zero_grad()
        (model(batch(i)[0]).sum() * float("nan")).backward()
        optimizer.step()
    assert sick(model, optimizer) == {"skipped steps": Verdict.FAULT}
    assert "4 of 6" in examine(model, optimizer).bad[0].seen


def test_a_training_that_went_back_is_told():
    model = thin_layers()
    optimizer = rw.Optimizer(model, guard=rw.check.Guard(patience=1, rewinds=1))
    train(model, optimizer, 0, 199)
    with pytest.warns(RuntimeWarning, match="Went back"):
        (model(batch(0)[0]).sum() * float("inf")).backward()
        optimizer.step()
    assert sick(model, optimizer) == {"incidents": Verdict.WARNING}
    assert "1 rewound" in examine(model, optimizer).bad[0].seen


def test_findings_print_as_lines_with_their_mend():
    model, optimizer = trained()
    text = str(examine(model, optimizer))
    assert "ok: owned parameters: 2 low-rank layers" in text
    rw.merge_(model)
    assert "Mend: call `rankwise.unmerge_(model)`" in str(examine(model, optimizer))
