"""A saved state is taken only where the next steps can go on from it."""

import copy

import pytest
import torch
from torch import nn

import rankwise as rw

NAN, INF = float("nan"), float("inf")
MISSING = object()
BOTH = {
    "momentum": {
        "no tuple": 3,
        "two parts": (torch.zeros(5, 2), torch.zeros(6, 2)),
        "another core": (torch.zeros(5, 2), torch.zeros(6, 2), torch.zeros(3, 3)),
        "infinite": (torch.zeros(5, 2), torch.zeros(6, 2), torch.full((2, 2), INF)),
        "missing": MISSING,
    },
    "row": {"0-dim": torch.zeros(()), "negative": -torch.ones(5)},
    "column": {"of rows": torch.zeros(5), "NaN": torch.full((6,), NAN)},
    "energy": {"a float": 1.0, "missing": MISSING},
    "step": {"0": 0, "a float": 1.5, "beyond": 2**63, "missing": MISSING},
    "waited": {"negative": -1, "words": "x"},
    "without_input": {"a list": [1]},
}
TRUST = {"weight_norm": {"0": 0.0, "NaN": NAN, "words": "1", "a tensor": torch.ones(())}}
RATE_FREE = {
    "origin": {
        "a word": "",
        "a point without a core": (torch.zeros(5, 1), torch.zeros(6, 1)),
        "numbers": (1, 2, 3),
        "ranks that differ": (torch.zeros(5, 1), torch.zeros(2, 2), torch.zeros(6, 1)),
        "missing": MISSING,
    },
    "size": {"0": 0.0},
    "farthest": {"a vector": torch.ones(2), "negative": torch.tensor(-1.0)},
    "root": {"NaN": torch.tensor(NAN)},
    "before": {"missing": MISSING},
    "taken": {"0": 0, "True": True},
}
DENSE = {
    "exp_avg": {"NaN": torch.full((1,), NAN), "a shape": torch.zeros(2), "missing": MISSING},
    "exp_avg_sq": {"negative": -torch.ones(1), "infinite": torch.full((1,), INF)},
    "step": {"an int": 3, "missing": MISSING},
}
CONTROLS = {"trust": None, "rate-free": rw.RateFree()}
OF_A_LAYER = [
    (control, entry, kind, value)
    for control, own in (("trust", BOTH | TRUST), ("rate-free", BOTH | RATE_FREE))
    for entry, kinds in own.items()
    for kind, value in kinds.items()
]


def trained(control: str, steps: int) -> tuple[nn.Module, rw.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
    rw.adapt_(model, rank=2, select=["0"], train=["1"])
    optimizer = rw.Optimizer(model, control=CONTROLS[control])
    for _ in range(steps):
        model(torch.ones(3, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def put(state: dict, entry: str, value: object) -> None:
    if value is MISSING:
        del state[entry]
    else:
        state[entry] = value


@pytest.mark.parametrize("control", CONTROLS)
def test_what_was_saved_is_taken_and_trains_on_alike(control):
    model, optimizer = trained(control, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, again = trained(control, 1)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for net, own in ((model, optimizer), (other, again)):
        net(torch.ones(3, 6)).square().sum().backward()
        own.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize(
    "control, entry, kind, value",
    OF_A_LAYER,
    ids=[f"{control}-{entry}-{kind}" for control, entry, kind, _ in OF_A_LAYER],
)
def test_a_layer_s_state_that_no_step_can_go_on_from_is_refused(control, entry, kind, value):
    _, optimizer = trained(control, 3)
    state_dict = copy.deepcopy(optimizer.state_dict())
    put(state_dict["state"][0], entry, value)
    _, other = trained(control, 0)
    with pytest.raises(ValueError, match=f"the saved state of layer '0': '{entry}'"):
        other.load_state_dict(state_dict)


@pytest.mark.parametrize(
    "name, value",
    [("betas", (0.9, 1.0)), ("betas", (NAN, 0.9)), ("betas", (0.9,)), ("betas", 0.9), ("eps", -1.0)]
    + [
        ("lr", -1.0),
        ("lr", "1"),
        ("peak_lr", None),
        ("peak_lr", NAN),
        ("weight_decay", NAN),
        ("max_step", 0.0),
    ],
)
def test_options_that_nobody_could_give_are_refused_and_nothing_changes(name, value):
    _, optimizer = trained("trust", 3)
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["param_groups"][0][name] = value
    _, other = trained("trust", 0)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises((ValueError, TypeError), match=name):
        other.load_state_dict(state_dict)
    assert other.state_dict() == before


@pytest.mark.parametrize("entry, kind", [(e, k) for e, kinds in DENSE.items() for k in kinds])
def test_a_dense_state_that_no_step_can_go_on_from_is_refused(entry, kind):
    _, optimizer = trained("trust", 3)
    state_dict = copy.deepcopy(optimizer.state_dict())
    bias = max(state_dict["state"])
    put(state_dict["state"][bias], entry, DENSE[entry][kind])
    _, other = trained("trust", 0)
    with pytest.raises(ValueError, match=rf"a dense parameter of shape \(1,\): '{entry}'"):
        other.load_state_dict(state_dict)


@pytest.mark.parametrize(
    "rule", [rw.Spectral(), rw.HeavyBall(), rw.SGD()], ids=lambda r: type(r).__name__
)
def test_other_rules_go_on_from_their_own(rule):
    _, optimizer = trained("trust", 0)
    again = rw.Optimizer(optimizer._model, rule=rule)
    optimizer._model(torch.ones(3, 6)).square().sum().backward()
    again.step()
    state_dict = copy.deepcopy(again.state_dict())
    again.load_state_dict(state_dict)
    state_dict["state"][0]["momentum"] = (torch.zeros(5, 2),)
    if rule.remembers:
        with pytest.raises(ValueError, match="'momentum' must be three tensors"):
            again.load_state_dict(state_dict)
