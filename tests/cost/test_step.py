"""What a step takes with each way to train, by hand and by what has to hold."""

import pytest
import torch
from torch import nn

from machines import machine
from rankwise.cost import step_costs
from rankwise.cost.adapter import Adapted, lora, low_rank
from rankwise.optim.adam import Adam

BATCH = 5
MIB = 2**20


def costs(model, example, *, rank=2, speeds=None, **options):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return step_costs(
        model,
        lambda: model(example),
        ranks=dict.fromkeys(names, rank),
        machine=machine() if speeds is None else speeds,
        **options,
    )


def mlp(between=None):
    return nn.Sequential(nn.Linear(6, 10), between or nn.GELU(), nn.Linear(10, 4))


def test_memory_by_hand():
    found = costs(mlp(), torch.ones(BATCH, 6))
    weights = 4 * (60 + 10 + 40 + 4)
    two, three = 4 * 2 * (6 + 10 + 10 + 4), 4 * 2 * (6 + 10 + 2 + 10 + 4 + 2)
    hidden, thin = 4 * BATCH * 10, 2 * 4 * BATCH * 2
    assert found.frozen[3:7] == (weights, 0, 0, hidden)
    # The input of the first layer is the batch, which is there anyway; that of the second is not.
    assert found.lora[3:7] == (weights + two, two, 2 * two, hidden + hidden + thin)
    moments = 4 * (2 * (18 + 16) + (6 + 10 + 1) + (10 + 4 + 1))
    assert found.low_rank[3:7] == (weights + three, three, moments, hidden + hidden + thin)
    assert found.full[3:7] == (weights, weights, 2 * weights, 2 * hidden)


def test_inputs_that_are_seldom_kept_save_themselves_and_a_gradient():
    always, seldom = (costs(mlp(), torch.ones(BATCH, 6), inputs_every=k).low_rank for k in (1, 10))
    hidden = 4 * BATCH * 10
    assert always.saved - seldom.saved == round(0.9 * hidden)
    assert always.gradients - seldom.gradients == round(0.9 * 4 * 2 * (6 + 10))
    assert seldom.state == always.state


def test_seconds_by_hand():
    speed = 1e3
    found = costs(mlp(), torch.ones(BATCH, 6), speeds=machine(flops=speed))
    first, second = 2 * BATCH * 60, 2 * BATCH * 40
    assert found.frozen.forward == pytest.approx((first + second) / speed)
    assert found.frozen.backward == pytest.approx(second / speed)
    assert found.full.backward == pytest.approx((first + 2 * second) / speed)
    thin = 2 * BATCH * 2 * (6 + 10 + 10 + 4)
    assert found.lora.forward - found.frozen.forward == pytest.approx(thin / speed)
    # Two gradients, and what goes back through both factors; of the first layer not to its input.
    back = 2 * thin - 2 * BATCH * 2 * 6
    assert found.lora.backward - found.frozen.backward == pytest.approx(back / speed)
    core = 2 * 2 * BATCH * 4
    assert found.low_rank.forward - found.frozen.forward == pytest.approx((thin + core) / speed)
    # The same, the gradient of each core, and what goes back through that of the second.
    back += 1.5 * core
    assert found.low_rank.backward - found.frozen.backward == pytest.approx(back / speed)
    everything = 4 * sum((60, 40))
    assert found.products == pytest.approx((first + 2 * second) / speed)
    assert found.full.seconds < everything


@pytest.mark.parametrize("name", ["low_rank", "lora"])
def test_more_rank_or_rows_never_cost_less(name):
    speeds = machine(flops=1e3, memory=1e3, call=1e-3, algebra=1e3, adamw=1e3)
    model = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 16))
    last = None
    for rank, batch in ((1, 3), (2, 3), (2, 6), (5, 6), (12, 6)):
        new = getattr(costs(model, torch.ones(batch, 12), rank=rank, speeds=speeds), name)
        assert last is None or all(a <= b for a, b in zip(last, new, strict=True))
        assert last is None or new.seconds > last.seconds
        last = new


def test_fewer_turns_never_cost_less():
    speeds = machine(flops=1e3, memory=1e3, call=1e-3, algebra=1e3)
    steps = [
        costs(mlp(), torch.ones(BATCH, 6), speeds=speeds, turns=k).low_rank for k in (1, 2, 4, 100)
    ]
    for more, less in zip(steps, steps[1:], strict=False):
        assert less.optimizer < more.optimizer
        assert less._replace(optimizer=0.0) == more._replace(optimizer=0.0)


def test_turns_are_those_of_the_default_rule():
    speeds = machine(call=1e-3, algebra=1e3)
    default, two = (
        costs(mlp(), torch.ones(BATCH, 6), speeds=speeds, **o) for o in ({}, {"turns": Adam.turns})
    )
    assert default == two


@pytest.mark.parametrize("name", ["turns", "inputs_every"])
def test_less_than_one_step_is_told(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1 step, got 0"):
        costs(mlp(), torch.ones(BATCH, 6), **{name: 0})


def test_a_frozen_model_costs_least():
    speeds = machine(flops=1e3, memory=1e3, call=1e-3, algebra=1e3, adamw=1e3)
    found = costs(mlp(), torch.ones(BATCH, 6), rank=1, speeds=speeds)
    for cost in (found.low_rank, found.lora, found.full):
        assert cost.seconds > found.frozen.seconds and cost.peak > found.frozen.peak


def test_optimizer_is_charged_by_parameter_and_by_number():
    found = costs(mlp(), torch.ones(BATCH, 6), speeds=machine(adamw=10.0, adamw_call=100.0))
    assert found.full.optimizer == pytest.approx(114 / 10 + 4 * 100)
    assert found.lora.optimizer == pytest.approx(60 / 10 + 4 * 100)
    assert found.frozen.optimizer == 0.0


def test_dense_parameters_train_beside_all_of_them_but_count_once():
    model = mlp()
    names = {"0": 2}
    found = step_costs(
        model,
        lambda: model(torch.ones(BATCH, 6)),
        ranks=names,
        dense=list(model[2].parameters()),
        machine=machine(),
    )
    assert found.frozen.gradients == 4 * 44 and found.frozen.state == 2 * 4 * 44
    assert found.lora.gradients == 4 * (44 + 2 * 16)
    assert found.full.gradients == 4 * 114


def test_a_layer_that_is_never_called_is_left_out():
    model, x = nn.Sequential(nn.Linear(6, 6)), torch.ones(BATCH, 6)
    model[0].spare = nn.Linear(6, 6)
    used = step_costs(model, lambda: model(x), ranks={"0": 2}, machine=machine())
    assert costs(model, x).low_rank == used.low_rank


def test_tied_weights_are_held_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    found = costs(model, torch.ones(BATCH, 6))
    assert found.frozen.weights == found.full.gradients == 4 * (36 + 12)


def test_convolutions_are_part_of_the_frozen_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    found = costs(model, torch.ones(2, 3, 8, 8), speeds=machine(flops=1.0))
    assert found.frozen.forward == 2 * 72 * 4 * 27 + 2 * 2 * 144 * 2
    assert found.frozen.backward == 0.0
    # Of the first convolution only its kernels have a gradient, of the linear map both.
    assert found.full.backward == 2 * 72 * 4 * 27 + 2 * (2 * 2 * 144 * 2)


def test_a_model_without_linear_maps():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    found = costs(model, torch.ones(2, 3, 8, 8), speeds=machine(flops=1.0))
    assert found.low_rank == found.lora == found.frozen
    assert found.full.backward > found.frozen.backward == 0.0
    assert "0% over the frozen model" in str(found)


def test_numbers_of_other_types():
    model = mlp().to(torch.bfloat16)
    found = costs(model, torch.ones(BATCH, 6, dtype=torch.bfloat16))
    assert found.frozen.weights == 2 * 114 and found.frozen.saved == 2 * BATCH * 10
    assert found.lora.gradients == 4 * 2 * 30  # Factors are float32 on any base.


def test_integers_go_in_where_the_model_takes_them():
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 6))
    found = costs(model, torch.tensor([[1, 2, 3]]), speeds=machine(memory=1.0))
    assert found.full.gradients == 4 * (120 + 42)
    assert found.full.backward > found.low_rank.backward


def test_sparse_gradients_are_no_obstacle():
    model = nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Linear(6, 6))
    assert costs(model, torch.tensor([[1, 2, 3]])).full.gradients == 4 * (120 + 42)


def test_a_model_on_meta_needs_a_machine_and_gives_the_same_memory():
    model, x = mlp(), torch.ones(BATCH, 6)
    shapes, y = mlp().to("meta"), x.to("meta")
    speeds = machine(flops=1e3, memory=1e3, call=1e-3, algebra=1e3, adamw=1e3)
    assert costs(shapes, y, speeds=speeds) == costs(model, x, speeds=speeds)
    with pytest.raises(ValueError, match="meta, which computes nothing"):
        step_costs(shapes, lambda: shapes(y), ranks={"0": 2})


@pytest.mark.parametrize("rank", [1, 4])
def test_the_optimizer_really_keeps_so_many_numbers(rank):
    import rankwise as rw
    from rankwise.recipes.memory import adapter_bytes, optimizer_bytes

    model = mlp()
    predicted = costs(model, torch.ones(BATCH, 6), rank=rank).low_rank
    weights = costs(model, torch.ones(BATCH, 6)).frozen.weights
    rw.adapt_(model, rank=rank)
    optimizer = rw.Optimizer(model)
    model(torch.randn(BATCH, 6)).square().mean().backward()
    optimizer.step()
    assert predicted.weights - weights == adapter_bytes(optimizer.layers)
    assert abs(predicted.state - optimizer_bytes(optimizer)) <= 16 * len(optimizer.layers)


def test_adapters_of_one_layer_by_hand():
    layer = Adapted(m=7, n=5, rank=2, rows=3, passes_on=False, size=4)
    two, three = lora(layer), low_rank(layer, inputs_every=2)
    assert (two.trained, two.moments, two.stepped) == (24, 48, (10, 14))
    assert (three.trained, three.keeps_input, three.gradients) == (28, 0.5, 28 - 0.5 * 10)
    assert two.saved == three.saved == 4 * 3 * 2


def test_the_table_has_a_line_for_each_way_and_a_sentence():
    text = str(costs(mlp(), torch.ones(BATCH, 6), speeds=machine(flops=1e6)))
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == ["frozen", "low rank", "LoRA", "full"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[6].startswith("Adapters cost ")
