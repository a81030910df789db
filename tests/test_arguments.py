"""What is no model, number, path or loss is refused by its name, and nothing is written."""

import pytest
import torch
from torch import nn

import rankwise as rw


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def adapted() -> nn.Sequential:
    model = net()
    rw.adapt_(model, rank=2)
    return model


ROWS = torch.zeros(2, 8)


@pytest.mark.parametrize(
    "call",
    [
        rw.adapt_,
        rw.plan,
        rw.factorize_,
        rw.plan_factorize,
        rw.shrink,
        rw.densify_,
        rw.merge_,
        rw.unmerge_,
        rw.check.fingerprints,
        rw.check.orthonormality,
        rw.robust.condition_numbers,
        rw.adapters.take,
        lambda model: rw.save(model, "run"),
        lambda model: rw.compress.calibrate(model, [ROWS], lambda net, x: net(x).sum()),
        lambda model: rw.robust.lipschitz_bound(model, ROWS),
        lambda model: rw.check.examine(model, rw.Optimizer(adapted())),
    ],
)
@pytest.mark.parametrize("given", [None, "model", [net()]])
def test_what_is_no_model_is_told(call, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module, got "):
        call(given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda x: rw.adapt_(net(), scale=x), "scale"),
        (lambda x: rw.adapt_(net(), min_features=x), "min_features"),
        (lambda x: rw.factorize_(net(), rank=2, min_features=x), "min_features"),
        (lambda x: rw.Optimizer(adapted(), lr=x), r"Optimizer\(lr="),
        (lambda x: rw.Optimizer(adapted(), weight_decay=x), r"Optimizer\(weight_decay="),
        (lambda x: rw.Optimizer(adapted(), max_step=x), r"Optimizer\(max_step="),
        (lambda x: rw.Optimizer(adapted()).clip_gradient_(x), "max_norm"),
        (lambda x: rw.Budget(parameters=x), r"Budget\(parameters="),
        (lambda x: rw.Budget(parameters=9, every=x), r"Budget\(every="),
        (lambda x: rw.Tolerance(rtol=x), r"Tolerance\(rtol="),
        (lambda x: rw.Tolerance(max_rank=x), r"Tolerance\(max_rank="),
        (lambda x: rw.TailTolerance(rtol=x), r"TailTolerance\(rtol="),
        (lambda x: rw.HeavyBall(momentum=x), r"HeavyBall\(momentum="),
        (lambda x: rw.Adam(betas=(x, x)), r"Adam\(betas="),
        (lambda x: rw.RateFree(start=x), r"RateFree\(start="),
        (lambda x: rw.robust.NormLimit(x), r"NormLimit\(norm="),
        (lambda x: rw.robust.SpreadPenalty(x), r"SpreadPenalty\(beta="),
        (lambda x: rw.robust.ConditionLimit(x), r"ConditionLimit\(kappa="),
        (lambda x: rw.init.Random(gain=x), r"Random\(gain="),
        (lambda x: rw.integrators.CheckedBUG(x), r"CheckedBUG\(rtol="),
        (lambda x: rw.compress.truncate_(adapted(), rtol=x), "rtol"),
    ],
)
def test_what_is_no_number_is_told(call, argument):
    with pytest.raises(TypeError, match=rf"`{argument}.*must be an? (number|int), got '0.3'"):
        call("0.3")


def test_a_rate_may_be_a_tensor():
    assert rw.Optimizer(adapted(), lr=torch.tensor(1e-3)).param_groups[0]["lr"] == 1e-3


def test_rank_rules_take_their_bounds_by_name_only():
    for rule in (rw.Budget, rw.Tolerance):
        with pytest.raises(TypeError, match="positional"):
            rule(1000)


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"params": "0"}, "`groups` must be dicts"),
        ([{"params": "0", "learning_rate": 1}], "unknown option 'learning_rate'"),
        ([{"params": "0", "weight_decy": 1}], "Did you mean 'weight_decay'?"),
    ],
)
def test_groups_that_say_nothing_are_told(groups, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rw.Optimizer(adapted(), groups=groups)


def test_a_name_in_groups_has_a_near_one():
    model = nn.ModuleDict({"body": net(), "classifier": nn.Linear(3, 3)})
    rw.adapt_(model, select="body.*", train="classifier")
    with pytest.raises(ValueError, match="did you mean 'classifier'"):
        rw.Optimizer(model, groups=[{"params": "clasifier"}])


@pytest.mark.parametrize("path", [None, 3])
@pytest.mark.parametrize(
    "call",
    [
        lambda path: rw.save(adapted(), path),
        lambda path: rw.load(net(), path),
        lambda path: rw.adapters.read(path),
        lambda path: rw.report.Recorder(path, rw.Optimizer(adapted())),
    ],
)
def test_what_is_no_path_is_told(call, path):
    with pytest.raises(TypeError, match="`folder` must be a path, got"):
        call(path)


def test_a_folder_of_nearly_this_name_is_told(tmp_path):
    rw.save(adapted(), tmp_path / "reviews")
    with pytest.raises(FileNotFoundError, match="there is no folder .*revews; did you .*reviews"):
        rw.load(net(), tmp_path / "revews")


@pytest.mark.parametrize("result", [1.0, torch.zeros(2, requires_grad=True), torch.zeros(())])
def test_what_is_no_loss_is_told(result):
    with pytest.raises(TypeError, match="must return a 0-dim tensor with a gradient"):
        rw.compress.calibrate(net(), [ROWS], lambda model, x: result)
    with pytest.raises(TypeError, match="must return a 0-dim tensor with a gradient"):
        rw.check.stationarity(adapted(), lambda x: result, [ROWS])


def test_names_of_a_sequential_are_told_as_they_are():
    with pytest.raises(ValueError, match=r"The linear layers are: 0, 2\."):
        rw.adapt_(net(), select="query")


def test_a_layer_made_of_another_layer_is_told():
    with pytest.raises(TypeError, match=r"`factors` must be Factors\(U, S, V\), got Linear"):
        rw.LowRankLinear(nn.Linear(3, 3))
