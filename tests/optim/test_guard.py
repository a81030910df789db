"""What is examined while training runs, what is repaired, and how training goes back."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import rankwise as rw
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.svd import detours
from rankwise.optim.guard import Guard, Incidents


def network(seed=0, adapters=True):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6), nn.Linear(6, 1)).double()
    if adapters:
        rw.adapt_(model, rank=2, select=["0", "2"], train="3")
    else:
        rw.factorize_(model, rank=2, select=["0", "2"])
    return model


def step(model, optimizer, seed, factor=1.0):
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(16, k, generator=draw, dtype=torch.float64) for k in (8, 1))
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    (factor * loss).backward()
    optimizer.step()
    return float(loss.detach())


def held(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tilted_(layer, size):
    """Bases that have lost their orthonormality, the weight unchanged."""
    f = layer.factors()
    tilt = torch.eye(f.rank, dtype=f.S.dtype)
    tilt[0, 1] = size
    with torch.no_grad():
        layer.U.copy_(f.U @ tilt)
        layer.S.copy_(torch.linalg.solve(tilt, f.S))


@pytest.mark.parametrize("adapters", [True, False], ids=["adapters", "from scratch"])
def test_a_healthy_run_is_the_same_with_and_without_an_eye_on_it(adapters):
    ends = []
    for guard in (Guard(every=10**6), Guard(every=1, rewinds=2)):
        model = network(adapters=adapters)
        optimizer = rw.Optimizer(model, guard=guard, rank_rule=rw.Tolerance(rtol=0.2, every=4))
        for seed in range(12):
            step(model, optimizer, seed)
        assert optimizer.incidents == Incidents()
        ends.append(held(model))
    assert same(*ends)


def test_worn_bases_are_repaired_and_the_weight_stays():
    model = network(adapters=False)
    optimizer = rw.Optimizer(model, lr=0.0, guard=Guard(every=2))
    step(model, optimizer, 0)
    weights = [model[i].factors().dense() for i in (0, 2)]
    # Of a layer that took no part in the step nothing else restores the bases.
    tilted_(model[0], 5e-4)
    model[0].requires_grad_(False)
    step(model, optimizer, 1)
    assert optimizer.incidents == Incidents(repaired=1)
    for i, W in zip((0, 2), weights, strict=True):
        assert_close(model[i].factors().dense(), W, atol=1e-13, rtol=0)
        assert float(orthonormality_defect(model[i].factors().U)) < 1e-14


def test_a_tucker_kernel_is_repaired_too():
    torch.manual_seed(0)
    core = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    U, V = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    worn = rw.nn.TuckerConv2d.point_type(U, core, V)
    new = worn.orthonormalised()
    assert_close(new.dense(), worn.dense(), atol=1e-12, rtol=0)
    assert max(float(orthonormality_defect(Q)) for Q in (new.U, new.V)) < 1e-14


def exploded_(model, optimizer):
    with torch.no_grad():
        model[0].S.mul_(1e4)


def nan_moment_(model, optimizer):
    optimizer.state[model[2].U]["row"][0] = float("nan")


def nan_dense_(model, optimizer):
    moments = [t for t in optimizer.state[model[3].weight].values() if torch.is_tensor(t)]
    moments[0].fill_(float("nan"))


BROKEN = {
    "exploded": (exploded_, "layer '0' has exploded"),
    "moment": (nan_moment_, "a moment of the optimizer, .* is not finite|has no SVD"),
    "dense": (nan_dense_, "'3.weight' is not finite"),
}


def normed():
    return nn.Sequential(network(), nn.BatchNorm1d(1, dtype=torch.float64))


NAN = torch.full((4, 8), float("nan"), dtype=torch.float64)


@pytest.mark.parametrize("skipped", [True, False], ids=["at the skip", "at the examination"])
def test_running_statistics_that_a_bad_batch_has_reached_are_put_back(skipped):
    model = normed()
    optimizer = rw.Optimizer(model, guard=Guard(every=2))
    for seed in range(2):
        step(model, optimizer, seed)
    good = held(model)
    if skipped:
        # A forward pass has been, though its step is not taken.
        model(NAN).sum().backward()
    else:
        with torch.no_grad():
            model(NAN)
        step(model, optimizer, 2)
    assert not model[1].running_mean.isfinite().all()
    words = "'1.running_mean', '1.running_var' were not finite, and are again"
    with pytest.warns(RuntimeWarning, match=words):
        optimizer.step() if skipped else step(model, optimizer, 3)
    assert optimizer.skipped == skipped and optimizer.incidents == Incidents(repaired=1)
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(model.state_dict()[name], good[name])
    assert not skipped or same(held(model) | {k: good[k] for k in good if "batches" in k}, good)
    step(model, optimizer, 5)
    assert model[1].running_var.isfinite().all()


@pytest.mark.parametrize("fresh", ["made", "copied", "loaded"])
def test_a_bad_first_batch_leaves_no_mark_either(fresh, tmp_path):
    model = normed()
    optimizer = rw.Optimizer(model)
    if fresh != "made":
        for seed in range(3):
            step(model, optimizer, seed)
    good = held(model)
    if fresh == "copied":
        model, optimizer = copy.deepcopy((model, optimizer))
    if fresh == "loaded":
        file = tmp_path / "run.safetensors"
        rw.save_training(file, model=model, optimizer=optimizer, progress={})
        model = normed()
        optimizer = rw.Optimizer(model)
        rw.load_training(file, model=model, optimizer=optimizer)
    model(NAN).sum().backward()
    with pytest.warns(RuntimeWarning, match="were not finite"):
        optimizer.step()
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(model.state_dict()[name], good[name])


def test_statistics_are_known_by_name_where_their_tensors_are_others_now():
    model = normed()
    optimizer = rw.Optimizer(model, guard=Guard(every=50))
    step(model, optimizer, 0)
    model.float().double()
    with torch.no_grad():
        model(NAN)
    model[1].num_batches_tracked.zero_()
    (model(torch.randn(4, 8, dtype=torch.float64)) * float("nan")).sum().backward()
    with pytest.warns(RuntimeWarning, match="were not finite"):
        optimizer.step()
    assert model[1].running_mean.isfinite().all() and model[1].running_var.isfinite().all()


def test_running_statistics_go_back_with_the_rest():
    model = normed()
    optimizer = rw.Optimizer(model, guard=Guard(every=2, rewinds=1))
    for seed in range(2):
        step(model, optimizer, seed)
    good = held(model)
    step(model, optimizer, 2)
    exploded_(model[0], optimizer)
    with pytest.warns(RuntimeWarning, match="Went back to what was trained in step 2"):
        step(model, optimizer, 3, factor=0.0)
    assert same(held(model) | {k: good[k] for k in good if "batches" in k}, good)


def test_statistics_that_never_were_finite_or_there_are_nobodys_business():
    model = normed()
    model.unused = nn.BatchNorm1d(3)
    model.unused.running_mean.fill_(float("nan"))
    model.lazy = nn.LazyBatchNorm1d(affine=False)
    model.meta = nn.BatchNorm1d(2, affine=False, device="meta")
    model.none = nn.BatchNorm1d(2, track_running_stats=False)
    model.forward = lambda x: model[1](model[0](x))
    optimizer = rw.Optimizer(model, guard=Guard(every=1, rewinds=1))
    for seed in range(3):
        step(model, optimizer, seed)
    assert optimizer.incidents == Incidents() and optimizer.steps == 3


@pytest.mark.parametrize("break_, message", BROKEN.values(), ids=BROKEN)
def test_where_nothing_can_be_repaired_training_ends_or_goes_back(break_, message):
    for rewinds in (0, 1):
        model = network()
        optimizer = rw.Optimizer(model, guard=Guard(every=1, rewinds=rewinds))
        for seed in range(4):
            step(model, optimizer, seed)
        good, states = held(model), copy.deepcopy(optimizer.state_dict())
        break_(model, optimizer)
        if not rewinds:
            with pytest.raises(FloatingPointError, match=message):
                step(model, optimizer, 4, factor=0.0)
            continue
        with pytest.warns(RuntimeWarning, match=f"{message}.*Went back"):
            step(model, optimizer, 4, factor=0.0)
        assert same(held(model), good) and optimizer.incidents == Incidents(rewound=1)
        for before, after in zip(
            states["state"].values(), optimizer.state_dict()["state"].values(), strict=True
        ):
            assert str(before) == str(after)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            losses = [step(model, optimizer, seed) for seed in range(5, 30)]
        assert all(map(torch.isfinite, map(torch.tensor, losses)))
        break_(model, optimizer)
        with pytest.raises(FloatingPointError, match="went back 1 times"):
            step(model, optimizer, 30, factor=0.0)


def test_a_training_that_is_stuck_ends_with_the_reason():
    model = network()
    optimizer = rw.Optimizer(model, guard=Guard(patience=3))
    step(model, optimizer, 0)
    for bad in (float("nan"), 1e300):
        step(model, optimizer, 1, bad)
    step(model, optimizer, 2)
    good = held(model)
    for bad in (float("inf"), 1e300):
        step(model, optimizer, 3, bad)
    with pytest.raises(FloatingPointError, match=r"after step 2: 3 steps in a row.*clip_gradient_"):
        step(model, optimizer, 3, float("nan"))
    assert same(held(model), good) and optimizer.skipped == 5


def test_going_back_leaves_the_count_of_steps_and_takes_other_ranks_back():
    model = network(adapters=False)
    rule = rw.Tolerance(rtol=0.9, every=2)
    optimizer = rw.Optimizer(model, rank_rule=rule, guard=Guard(every=3, rewinds=1, patience=1))
    for seed in range(3):
        step(model, optimizer, seed)
    good, ranks = held(model), [layer.rank for _, layer in optimizer.layers]
    step(model, optimizer, 3)
    assert [layer.rank for _, layer in optimizer.layers] != ranks
    with pytest.warns(
        RuntimeWarning, match="after step 4.*Went back to what was trained in step 3"
    ):
        step(model, optimizer, 4, float("nan"))
    assert same(held(model), good) and optimizer.steps == 4
    step(model, optimizer, 5)
    assert optimizer.steps == 5 and optimizer.skipped == 1


def test_incidents_are_saved_and_copied(tmp_path):
    model = network()
    optimizer = rw.Optimizer(model, guard=Guard(every=1, rewinds=1, patience=1))
    step(model, optimizer, 0)
    with pytest.warns(RuntimeWarning):
        step(model, optimizer, 1, float("nan"))
    rw.save_training(tmp_path / "x.safetensors", model=model, optimizer=optimizer, progress={})
    other = network()
    resumed = rw.Optimizer(other)
    rw.load_training(tmp_path / "x.safetensors", model=other, optimizer=resumed)
    assert resumed.incidents == Incidents(rewound=1) == copy.deepcopy(optimizer).incidents


def test_detours_of_the_svd_are_counted(monkeypatch):
    model = network()
    optimizer = rw.Optimizer(model)
    real, calls = torch.linalg.svd, []

    def fails_once(*arguments, **named):
        calls.append(1)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return real(*arguments, **named)

    monkeypatch.setattr(torch.linalg, "svd", fails_once)
    before = detours.total()
    step(model, optimizer, 0)
    assert optimizer.incidents.detours == detours.total() - before == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"every": 0}, r"Guard\(every=...\)` must be at least 1, got 0"),
        ({"patience": 0}, r"Guard\(patience=...\)` must be at least 1"),
        ({"rewinds": -1}, r"Guard\(rewinds=...\)` must be at least 0"),
        ({"growth": 1.0}, r"Guard\(growth=...\)` must be above 1, got 1.0"),
        ({"max_defect": 0.0}, r"Guard\(max_defect=...\)` must be above 0"),
        ({"growth": float("nan")}, r"Guard\(growth=...\)`"),
    ],
    ids=["every", "patience", "rewinds", "growth", "defect", "nan"],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Guard(**options)


def test_a_guard_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="guard"):
        rw.Optimizer(network(), guard=3)


@pytest.mark.parametrize("dtype, factor", [(torch.float64, 1e80), (torch.float32, 1e11)])
def test_moments_of_large_gradients_are_no_trouble(dtype, factor):
    model = network().to(dtype)
    optimizer = rw.Optimizer(model, guard=Guard(every=2))
    draw = torch.Generator().manual_seed(0)
    for _ in range(6):
        optimizer.zero_grad()
        (factor * model(torch.randn(16, 8, generator=draw, dtype=dtype)).square().mean()).backward()
        optimizer.step()
    assert (optimizer.steps, optimizer.skipped) == (6, 0)


def test_a_layer_that_outgrows_a_small_base_has_not_exploded():
    model = network()
    with torch.no_grad():
        for i in (0, 2):
            model[i].base.weight.mul_(1e-4)
    rule = rw.SGD()
    optimizer = rw.Optimizer(model, lr=0.05, max_step=float("inf"), rule=rule, guard=Guard(every=5))
    for seed in range(60):
        step(model, optimizer, seed)
    small = float(model[0].base.weight.norm())
    assert max(float(model[i].factors().norm()) for i in (0, 2)) > 10 * small
    assert (optimizer.steps, optimizer.incidents) == (60, Incidents())


def test_an_svd_that_fails_for_good_takes_training_back_once(monkeypatch):
    model = network()
    optimizer = rw.Optimizer(model, guard=Guard(every=1, rewinds=1, patience=1))
    step(model, optimizer, 0)
    good = held(model)

    def fails(*_, **__):
        raise torch.linalg.LinAlgError("no")

    with monkeypatch.context() as broken:
        broken.setattr(torch.linalg, "svd", fails)
        broken.setattr(torch.linalg, "eigh", fails)
        with pytest.warns(RuntimeWarning, match="do not converge.*Went back"):
            step(model, optimizer, 1)
    assert same(held(model), good)
    assert (optimizer.incidents.rewound, optimizer.skipped, optimizer.steps) == (1, 1, 1)


def test_what_a_closure_raises_is_its_own_affair():
    model = network()
    optimizer = rw.Optimizer(
        model, rule=rw.SGD(), integrator=rw.integrators.BUG(), guard=Guard(rewinds=3)
    )
    calls = []

    def closure():
        calls.append(1)
        if len(calls) > 1:
            raise FloatingPointError("mine")
        loss = model(torch.ones(2, 8, dtype=torch.float64)).square().mean()
        loss.backward()
        return loss

    with pytest.raises(FloatingPointError, match="^mine$"):
        optimizer.step(closure)
    assert optimizer.incidents == Incidents()
