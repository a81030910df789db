"""One pass of small networks, operations and memory counted by hand."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from rankwise.cost.trace import trace

BATCH = 5


def mlp(between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 10), between, nn.Linear(10, 4))


def linear(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def frozen(model, example):
    return trace(model, lambda: model(example), trains=lambda p: False, layers=linear(model))


def whole(model, example):
    return trace(model, lambda: model(example), trains=lambda p: True, layers={})


def flops(operations) -> float:
    return sum(o.product.flops for o in operations if o.product is not None)


def test_the_products_of_a_frozen_and_a_whole_network():
    model, x = mlp(nn.ReLU()), torch.ones(BATCH, 6)
    first, second = 2 * BATCH * 6 * 10, 2 * BATCH * 10 * 4
    assert flops(frozen(model, x).forward) == first + second
    # The gradient ends where the first adapter is: at what the first layer puts out.
    assert flops(frozen(model, x).backward) == second
    assert flops(whole(model, x).forward) == first + second
    assert flops(whole(model, x).backward) == first + 2 * second
    x.requires_grad_()
    assert flops(frozen(model, x).backward) == first + second


def test_what_is_kept_for_the_backward_pass_is_each_memory_once():
    x = torch.ones(BATCH, 6)
    hidden = 4 * BATCH * 10
    # ReLU keeps what it puts out, GELU what it takes.
    for between, of_whole in ((nn.ReLU(), hidden), (nn.GELU(), 2 * hidden)):
        model = mlp(between)
        assert sum(frozen(model, x).saved.values()) == hidden
        assert sum(whole(model, x).saved.values()) == of_whole


def test_what_comes_behind_the_first_layer_may_work_in_place():
    found = frozen(mlp(nn.ReLU(inplace=True)), torch.ones(BATCH, 6))
    assert sum(found.saved.values()) == 4 * BATCH * 10
    assert found.peak <= frozen(mlp(nn.ReLU()), torch.ones(BATCH, 6)).peak


def test_what_a_layer_meets():
    model, x = mlp(nn.GELU()), torch.ones(2, 3, 6)
    first, second = frozen(model, x).meetings.values()
    assert (first.rows, first.size, first.passes_on, first.inputs) == (6, 4, False, {})
    assert (second.rows, second.size, second.passes_on) == (6, 4, True)
    assert list(second.inputs.values()) == [4 * 6 * 10]


def test_an_input_that_another_layer_keeps_is_the_same_memory():
    for between, shared in ((nn.ReLU(), True), (nn.GELU(), False)):
        found = frozen(mlp(between), torch.ones(BATCH, 6))
        (identity,) = found.meetings["2"].inputs
        assert (identity in found.saved) is shared


def test_the_peak_is_what_is_alive_together():
    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(100, 100, bias=False)

        def forward(self, x):
            return self.map(x).exp().sum()

    found = frozen(Exponential(), torch.ones(50, 100))
    z = 4 * 50 * 100
    # First y and exp(y) = z, which is kept; later z and its gradient; and scalars.
    assert 2 * z <= found.peak <= 2 * z + 16
    assert sum(found.saved.values()) == z


def test_gradients_of_weights_stay_until_the_end_of_the_pass():
    model = nn.Sequential(*[nn.Linear(40, 40, bias=False) for _ in range(6)])
    found = whole(model, torch.ones(1, 40))
    weights = 6 * 4 * 40 * 40
    assert weights <= found.peak <= weights + 12 * 4 * 40


@pytest.mark.parametrize("between", [nn.ReLU(), nn.GELU(), nn.LayerNorm(10), nn.Softmax(-1)])
def test_activations_grow_with_the_batch_and_nothing_else_does(between):
    small, large = (frozen(mlp(between), torch.ones(b, 6)) for b in (5, 50))
    assert sum(large.saved.values()) == 10 * sum(small.saved.values())
    assert large.peak == 10 * small.peak
    assert len(large.forward) == len(small.forward)


def test_shapes_alone_are_enough():
    real = frozen(mlp(nn.ReLU()), torch.ones(BATCH, 6))
    shapes = frozen(mlp(nn.ReLU()).to("meta"), torch.ones(BATCH, 6, device="meta"))
    assert shapes.forward == real.forward and shapes.backward == real.backward
    assert (shapes.peak, sorted(shapes.saved.values())) == (real.peak, sorted(real.saved.values()))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Linear(8, 24)
        self.register_buffer("table", torch.ones(8))

    def forward(self, x):
        q, k, v = (self.maps(x) * self.table.repeat(3)).unflatten(-1, (3, 2, 4)).unbind(-3)
        return nn.functional.scaled_dot_product_attention(q.mT, k.mT, v.mT)


def test_fake_tensors_take_the_ways_of_real_ones():
    def look():
        return frozen(Attention(), torch.ones(3, 5, 8))

    real = look()
    with FakeTensorMode():
        fake = look()
    assert fake.forward == real.forward and fake.backward == real.backward
    assert (fake.peak, sorted(fake.saved.values())) == (real.peak, sorted(real.saved.values()))


def test_nothing_of_the_model_has_changed():
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Dropout(), nn.Linear(10, 4))
    model.eval()
    model[0].train()
    model[3].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(10, 6)
    before = copy.deepcopy(model)
    gradient = model[0].weight.grad
    state = torch.get_rng_state()
    for look in (frozen, whole):
        look(model, torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert p.requires_grad == q.requires_grad and torch.equal(p, q)
        assert p is model[0].weight or p.grad is None
    assert model[0].weight.grad is gradient and torch.equal(gradient, torch.ones(10, 6))
    for b, c in zip(model.buffers(), before.buffers(), strict=True):
        assert torch.equal(b, c)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nothing_has_changed_after_an_error():
    model = mlp(nn.ReLU()).eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        frozen(model, torch.ones(BATCH, 7))
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert model(torch.ones(1, 6)).requires_grad


class Output(OrderedDict):
    """As those of transformers: a mapping with a loss in it."""


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x, labels=None):
        logits = self.head(x)
        if labels is None:
            return Output(logits=logits)
        return Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def test_the_loss_is_counted_where_the_model_has_one():
    model, x, y = WithLoss(), torch.ones(BATCH, 6), torch.zeros(BATCH, dtype=torch.long)
    layers = linear(model)
    bare = trace(model, lambda: model(x), trains=lambda p: False, layers=layers)
    lossy = trace(model, lambda: model(x, y), trains=lambda p: False, layers=layers)
    assert sum(o.transcendental for o in bare.forward) == 0
    assert sum(o.transcendental for o in lossy.forward) == 4 * BATCH
    assert len(lossy.backward) > len(bare.backward)


def test_a_recomputed_part_is_paid_for_in_time_and_saved_in_memory():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(6, 50), nn.GELU(), nn.Linear(50, 6))
            self.again = False

        def forward(self, x):
            y = x * 1.0
            return checkpoint(self.inner, y, use_reentrant=False) if self.again else self.inner(y)

    model, x = Checkpointed(), torch.ones(BATCH, 6, requires_grad=True)
    plain = whole(model, x)
    model.again = True
    recomputed = whole(model, x)
    more = flops(recomputed.backward) - flops(plain.backward)
    assert 2 * BATCH * 6 * 50 <= more <= flops(plain.forward)
    assert sum(recomputed.saved.values()) < sum(plain.saved.values())


def test_data_that_decide_what_is_computed_are_looked_at():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 6)

        def forward(self, x):
            x = self.map(x)
            return self.map(x) if x.sum().item() > -1e9 else x

    found = frozen(Branching(), torch.ones(BATCH, 6))
    assert found.meetings["map"].rows == 2 * BATCH
    assert flops(found.forward) == 2 * (2 * BATCH * 36)


def test_an_output_without_a_way_back_is_told():
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 6)

        def forward(self, x):
            return self.map(x).detach()

    with pytest.raises(ValueError, match="nothing in the model's output depends on"):
        frozen(Detached(), torch.ones(BATCH, 6))


def test_a_model_in_which_nothing_trains_has_no_way_back():
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    found = frozen(Doubled(), torch.ones(BATCH, 6))
    assert len(found.forward) == 1 and found.backward == () and found.saved == {}
