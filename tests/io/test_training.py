"""Going on with a run: not nearly, exactly."""

import collections
import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, SequentialLR

from foreign_files import save_file
from rankwise.io.training import load_training, save_training
from rankwise.io.tree import flatten, unflatten
from rankwise.nn import LowRankConv2d, LowRankLinear
from rankwise.numerics.init import variance_preserving
from rankwise.optim.adam import Adam
from rankwise.optim.budget import Budget
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.rate_free import RateFree
from rankwise.optim.spectral import Spectral
from rankwise.optim.tolerance import Tolerance
from rankwise.optim.update_rule import SGD, HeavyBall
from rankwise.surgery.adapt import adapt_
from rankwise.surgery.layers import factored_layers

RANK_RULES = [
    FixedRank(),
    Tolerance(rtol=0.3, every=3, grow=2),
    Budget(parameters=120, every=3, grow=2),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 16),
        nn.BatchNorm1d(16),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(16, 16),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(16, 4),
    )
    adapt_(model, rank=2, select=["0", "4"], train=["7", "1"])
    return model


def parts(rank_rule, rule=None):
    model = network()
    optimizer = Optimizer(model, lr=5e-2, rule=rule, rank_rule=rank_rule, weight_decay=0.01)
    warmup = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
    cosine = CosineAnnealingLR(optimizer, T_max=20)
    return model, optimizer, SequentialLR(optimizer, [warmup, cosine], milestones=[3])


def run(model, optimizer, scheduler, steps: int) -> list[float]:
    """Batches come from the global generators, as do the masks of dropout."""
    losses = []
    for _ in range(steps):
        x = torch.randn(10, 12) * random.uniform(0.5, 1.5)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :4].sin()).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def ranks(model: nn.Module) -> list[int]:
    return [layer.rank for layer in factored_layers(model).values()]


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 8])
@pytest.mark.parametrize("rank_rule", RANK_RULES, ids=lambda rule: type(rule).__name__)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, rank_rule, stop):
    path = tmp_path / "run.safetensors"
    torch.manual_seed(7)
    random.seed(7)
    first = parts(rank_rule)
    torch.manual_seed(8)
    run(*first, stop)
    model, optimizer, scheduler = first
    progress = {"step": stop, "loss": 0.1, "history": [1, 2]}
    save_training(path, model=model, optimizer=optimizer, scheduler=scheduler, progress=progress)
    expected = run(*first, 8)

    second = parts(rank_rule)
    random.seed(99)
    torch.manual_seed(99)
    run(*second, 5)
    other, optimizer2, scheduler2 = second
    got = load_training(path, model=other, optimizer=optimizer2, scheduler=scheduler2)
    assert got == progress
    assert run(*second, 8) == expected
    assert ranks(other) == ranks(model)
    states = model.state_dict(), other.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert optimizer2.steps == optimizer.steps == stop + 8


@pytest.mark.parametrize("rule", [SGD(), HeavyBall(), Adam(), Spectral()], ids=repr)
def test_every_update_rule_resumes_exactly_in_a_fresh_model(tmp_path, rule):
    path = tmp_path / "run.safetensors"
    rank_rule = Tolerance(rtol=0.3, every=3, grow=2)
    model, optimizer, scheduler = parts(rank_rule, rule)
    run(model, optimizer, scheduler, 4)
    assert ranks(model) != [2, 2]
    save_training(path, model=model, optimizer=optimizer, scheduler=scheduler, progress={})
    expected = run(model, optimizer, scheduler, 6)
    fresh = parts(rank_rule, rule)
    load_training(path, model=fresh[0], optimizer=fresh[1], scheduler=fresh[2])
    assert run(*fresh, 6) == expected


def scratch(control):
    """Low rank as a whole, with a convolution, ranks by a budget."""
    draw, like = torch.Generator().manual_seed(0), torch.empty(0)
    kernel = variance_preserving(6, 9, 3, generator=draw, like=like)
    weight = variance_preserving(5, 24, 4, generator=draw, like=like)
    model = nn.Sequential(
        LowRankConv2d(kernel, 3, bias=torch.zeros(6)),
        nn.Tanh(),
        nn.Flatten(),
        LowRankLinear(weight),
    )
    rule = Budget(parameters=100, every=4)
    return model, Optimizer(model, rank_rule=rule, control=control)


@pytest.mark.parametrize("control", [None, RateFree()], ids=repr)
def test_a_network_of_low_rank_as_a_whole_resumes_exactly(tmp_path, control):
    def steps(model, optimizer, first, last):
        for i in range(first, last):
            draw = torch.Generator().manual_seed(i)
            x = torch.randn(8, 1, 4, 4, generator=draw)
            (model(x) - x.flatten(1)[:, :5]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, optimizer = scratch(control)
    steps(whole, optimizer, 0, 20)
    part, optimizer = scratch(control)
    steps(part, optimizer, 0, 9)
    path = tmp_path / "state.safetensors"
    save_training(path, model=part, optimizer=optimizer, progress={"step": 9})
    resumed, optimizer = scratch(control)
    load_training(path, model=resumed, optimizer=optimizer)
    steps(resumed, optimizer, 9, 20)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def saved(tmp_path, **options):
    model, optimizer, scheduler = parts(FixedRank())
    run(model, optimizer, scheduler, 2)
    path = tmp_path / "run.safetensors"
    save_training(path, model=model, optimizer=optimizer, scheduler=scheduler, progress={})
    return path


def refuses(path, message, *, model, optimizer, scheduler) -> None:
    """Loading is an error and changes neither the model nor the random state."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        load_training(path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_that_has_come_to_nothing_is_put_back(tmp_path):
    path = saved(tmp_path)
    fresh, optimizer, scheduler = parts(FixedRank())
    load_training(path, model=fresh, optimizer=optimizer, scheduler=scheduler)
    good = fresh.state_dict()
    model, optimizer, scheduler = parts(FixedRank())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(float("nan") if p.requires_grad else 1.0)
    load_training(path, model=model, optimizer=optimizer, scheduler=scheduler)
    for name, value in model.state_dict().items():
        assert torch.equal(good[name], value), name


def test_another_optimizer_or_scheduler_is_refused(tmp_path):
    path = saved(tmp_path)
    model, optimizer, scheduler = parts(FixedRank())
    adamw = torch.optim.AdamW(model.parameters())
    message = "was saved with optimizer Optimizer, got AdamW"
    refuses(path, message, model=model, optimizer=adamw, scheduler=scheduler)
    message = "was saved with scheduler SequentialLR, got None"
    refuses(path, message, model=model, optimizer=optimizer, scheduler=None)


def test_an_optimizer_of_another_model_is_refused_by_both(tmp_path):
    path = saved(tmp_path)
    model, _, _ = parts(FixedRank())
    _, other, scheduler = parts(FixedRank())
    refuses(path, "was made for another", model=model, optimizer=other, scheduler=scheduler)
    elsewhere = tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match="was made for another"):
        save_training(elsewhere, model=model, optimizer=other, scheduler=scheduler, progress={})
    assert not elsewhere.exists()


def test_another_rule_is_refused_and_the_model_put_back(tmp_path):
    path = saved(tmp_path)
    model, optimizer, scheduler = parts(FixedRank(), HeavyBall())
    refuses(path, "do not fit: .*rule", model=model, optimizer=optimizer, scheduler=scheduler)


def test_other_trained_parameters_are_refused(tmp_path):
    path = saved(tmp_path)
    model = network()
    model[7].bias.requires_grad_(False)
    optimizer = Optimizer(model)
    scheduler = SequentialLR(optimizer, [CosineAnnealingLR(optimizer, 3)], milestones=[])
    message = "dense parameter '7.bias' is unexpected"
    refuses(path, message, model=model, optimizer=optimizer, scheduler=scheduler)


def test_a_model_without_low_rank_layers_goes_on_exactly(tmp_path):
    x, path = torch.randn(5, 3), tmp_path / "state.safetensors"

    def start() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        return model, Optimizer(model, lr=0.1)

    def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    (whole, alone), (first, before), (second, after) = start(), start(), start()
    train(whole, alone, 5)
    train(first, before, 2)
    save_training(path, model=first, optimizer=before, progress={})
    load_training(path, model=second, optimizer=after)
    train(second, after, 3)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in second.state_dict().items())


def test_an_optimizer_that_takes_products_of_what_it_remembers_goes_on_exactly(tmp_path):
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        return model, torch.optim.LBFGS(model.parameters(), max_iter=3)

    def step(model, optimizer, seed):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))

        def closure():
            optimizer.zero_grad()
            loss = (model(x) - x[:, :2]).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    (whole, own), (again, other) = made(), made()
    for seed in range(3):
        step(whole, own, seed)
    path = tmp_path / "run.safetensors"
    save_training(path, model=whole, optimizer=own, progress={})
    load_training(path, model=again, optimizer=other)
    path.write_bytes(b"")
    for seed in range(3, 8):
        step(whole, own, seed)
        step(again, other, seed)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_plain_model_is_refused(tmp_path):
    path = saved(tmp_path)
    plain = nn.Sequential(nn.Linear(2, 2))
    optimizer = Optimizer(plain)
    scheduler = SequentialLR(optimizer, [CosineAnnealingLR(optimizer, 3)], milestones=[])
    refuses(path, "no low-rank layers", model=plain, optimizer=optimizer, scheduler=scheduler)


def rewrite(path, change) -> None:
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["rankwise"])
    tensors = load_file(path)
    change(tensors, document)
    save_file(tensors, path, metadata={"rankwise": json.dumps(document)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.pop("state.3"), "state tensor '3' is missing"),
        (lambda t, d: t.pop("model.0.U"), "tensor '0.U' is missing"),
        (lambda t, d: d.pop("tree"), "no tree of states"),
        (lambda t, d: d["tree"].update(optimizer={"tensor": 999}), "not a value that rankwise"),
        (lambda t, d: d["tree"].update(optimizer={"object": ["os"]}), "not a value that rankwise"),
        (lambda t, d: d["tree"].update(random={"dict": [1]}), "must be a list of pairs"),
        (lambda t, d: d.update(format="rankwise-adapter"), "has format 'rankwise-adapter'"),
        (lambda t, d: d.pop("model"), "'model' of the metadata is None, no object"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, change, message):
    path = saved(tmp_path)
    rewrite(path, change)
    model, optimizer, scheduler = parts(FixedRank())
    refuses(path, message, model=model, optimizer=optimizer, scheduler=scheduler)


def test_what_cannot_be_saved_is_named_and_the_old_file_stays(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    model, optimizer, scheduler = parts(FixedRank())
    optimizer.state[model[0].U]["note"] = object()
    with pytest.raises(TypeError, match=r"optimizer\['state'\]\[\d\]\['note'\] is a object"):
        save_training(path, model=model, optimizer=optimizer, scheduler=scheduler, progress={})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize("progress", [{"a": object()}, {"a": (1, 2)}, {1: 2}, {"a": float("nan")}])
def test_progress_must_survive_json(tmp_path, progress):
    model, optimizer, scheduler = parts(FixedRank())
    with pytest.raises(TypeError, match="`progress`"):
        save_training(
            tmp_path / "x.safetensors", model=model, optimizer=optimizer, progress=progress
        )


def test_the_path_must_be_a_safetensors_file(tmp_path):
    model, optimizer, _ = parts(FixedRank())
    with pytest.raises(ValueError, match="must be a folder or end in .safetensors"):
        save_training(tmp_path / "x.pt", model=model, optimizer=optimizer, progress={})


def test_a_scheduler_with_a_counter_resumes(tmp_path):
    path = tmp_path / "run.safetensors"
    model = network()
    optimizer = Optimizer(model, lr=1e-2)
    scheduler = MultiStepLR(optimizer, [2, 2, 4], gamma=0.5)
    run(model, optimizer, scheduler, 1)
    save_training(path, model=model, optimizer=optimizer, scheduler=scheduler, progress={})
    run(model, optimizer, scheduler, 4)
    expected = scheduler.get_last_lr()
    other = network()
    optimizer2 = Optimizer(other, lr=1.0)
    scheduler2 = MultiStepLR(optimizer2, [9])
    load_training(path, model=other, optimizer=optimizer2, scheduler=scheduler2)
    run(other, optimizer2, scheduler2, 4)
    assert scheduler2.get_last_lr() == expected


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)
)
keys = st.one_of(st.integers(), st.text(max_size=5), st.tuples(st.integers(), st.integers()))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=20,
)


def kinds(value):
    if isinstance(value, dict):
        return {kinds(k): kinds(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(kinds(v) for v in value)
    return type(value).__name__, repr(value)


@settings(max_examples=100, deadline=None)
@given(values)
def test_values_come_back_from_json_with_their_types_and_every_bit(value):
    back = unflatten(json.loads(json.dumps(flatten(value, [], "value"))), [])
    assert back == value
    assert str(kinds(back)) == str(kinds(value))


def test_tensors_and_counters_come_back():
    tensors: list[torch.Tensor] = []
    value = {0: (torch.ones(2), [torch.zeros(())]), "c": collections.Counter([1, 1, 5])}
    tree = json.loads(json.dumps(flatten(value, tensors, "value")))
    back = unflatten(tree, tensors)
    assert back[0][0] is value[0][0] and back[0][1][0] is value[0][1][0]
    assert back["c"] == value["c"] and type(back["c"]) is collections.Counter
