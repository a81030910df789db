"""Several adapters for one model: switching is exact."""

import pytest
import torch
from torch import nn

import rankwise as rw
from adapter_models import adapted, adapter, plain
from networks import batch, train
from rankwise.io.adapter_file import FILE_NAME, FORMAT
from rankwise.io.document import read_document
from rankwise.nn import LowRankLinear
from rankwise.nn.low_rank import low_rank_layers


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def head(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    rw.adapt_(model, rank=2, select="0", train=["1", "3"])
    return model


def test_what_was_taken_comes_back_bit_for_bit():
    model = head()
    train(model, rw.Optimizer(model, lr=1e-2), 0, 3)
    before, taken = bits(model), rw.adapters.take(model)
    optimizer = rw.Optimizer(model, lr=1e-2, rank_rule=rw.Tolerance(rtol=0.1))
    train(model, optimizer, 3, 9)
    assert not same(before, bits(model))
    rw.adapters.put_(model, taken)
    assert same(before, bits(model))


def test_a_copy_shares_nothing_with_the_model():
    model = head()
    taken = rw.adapters.take(model)
    before = taken.dense["3.weight"].clone()
    train(model, rw.Optimizer(model, lr=1e-1), 0, 3)
    assert torch.equal(taken.dense["3.weight"], before)


def test_training_goes_on_exactly_after_another_adapter_was_tried():
    ends = []
    for look in (False, True):
        model = head()
        optimizer = rw.Optimizer(model, lr=1e-2)
        train(model, optimizer, 0, 4)
        if look:
            mine = rw.adapters.take(model)
            rw.adapters.put_(model, (2 * mine.without_dense()).with_dense(mine))
            model.eval()(batch(0)[0])
            model.train()
            rw.adapters.put_(model, mine)
        train(model, optimizer, 4, 8)
        ends.append(bits(model))
    assert same(*ends)


def test_the_optimizer_says_so_where_other_ranks_are_left_in():
    model = adapted(1, {"0": 2})
    optimizer = rw.Optimizer(model, lr=1e-2)
    loss = lambda: model(batch(0)[0]).square().mean().backward()  # noqa: E731
    loss()
    optimizer.step()
    rw.adapters.put_(model, adapter(2, {"0": 3}))
    optimizer.zero_grad()
    loss()
    with pytest.raises(ValueError, match="rank 3, the momentum of its optimizer rank 2"):
        optimizer.step()


def test_a_plain_model_becomes_the_one_that_was_taken_from():
    model = adapted(1, {"0": 2, "4": 3}, scale=0.5)
    other = plain()
    rw.adapters.put_(other, rw.adapters.take(model))
    assert torch.equal(other(batch(0)[0]), model(batch(0)[0]))
    assert same(bits(other), bits(model))
    trains = [n for n, p in other.named_parameters() if p.requires_grad]
    assert trains == [n for n, p in model.named_parameters() if p.requires_grad]


def test_layers_that_an_adapter_lacks_are_zero_and_those_of_another_are_added():
    x = batch(0)[0]
    a, b = adapter(1, {"0": 2, "2": 1}), adapter(2, {"2": 3, "4": 2})
    expected = []
    for one in (a, b):
        model = plain()
        rw.adapters.put_(model, one)
        expected.append(model(x))
    model = plain()
    for one, y in zip((a, b, a, b), expected * 2, strict=True):
        rw.adapters.put_(model, one)
        torch.testing.assert_close(model(x), y, rtol=0, atol=1e-15)
    assert set(low_rank_layers(model)) == {"0", "2", "4"}


def test_no_layer_is_added_behind_the_back_of_an_optimizer():
    model = adapted(1, {"0": 2})
    optimizer = rw.Optimizer(model, lr=1e-2)
    before = bits(model)
    with pytest.raises(ValueError, match="'2'.*the optimizer of the model would not train it"):
        rw.adapters.put_(model, adapter(2, {"0": 1, "2": 3}))
    assert same(before, bits(model))
    del optimizer
    rw.adapters.put_(model, adapter(2, {"0": 1, "2": 3}))
    assert isinstance(model[2], LowRankLinear)


def test_the_scale_of_the_model_stays():
    model = adapted(1, {"0": 2}, scale=0.25)
    a = adapter(2, {"0": 3}, scale=-2.0)
    rw.adapters.put_(model, a)
    other = plain()
    rw.adapters.put_(other, a)
    assert model[0].scale == 0.25
    torch.testing.assert_close(model(batch(0)[0]), other(batch(0)[0]), rtol=1e-14, atol=1e-14)


def test_factors_get_the_type_of_the_model():
    model = plain().float()
    rw.adapters.put_(model, adapter(1, {"0": 2}))
    assert model[0].U.dtype == torch.float32


def test_files_hold_what_was_written(tmp_path):
    for a in (adapter(1, {"0": 2, "2": 1}), rw.adapters.take(head())):
        path = rw.adapters.write(a, tmp_path / "one")
        assert path == tmp_path / "one" / "adapter.safetensors"
        b = rw.adapters.read(tmp_path / "one")
        assert (a.without_dense() - b.without_dense()).norm() == 0.0 and a.ranks == b.ranks
        assert all(torch.equal(a.dense[name], b.dense[name]) for name in a.dense)


def test_a_file_of_a_value_is_that_of_the_model(tmp_path):
    model = head()
    rw.save(model, tmp_path / "model")
    rw.adapters.write(rw.adapters.take(model), tmp_path / "value")
    one, two = (
        read_document(tmp_path / n / FILE_NAME, format=FORMAT, version=1)
        for n in ("model", "value")
    )
    assert one.content == two.content and same(one.tensors, two.tensors)


def test_parts_of_a_model_have_adapters_of_their_own():
    outer = nn.ModuleDict({"encoder": plain(), "head": nn.Linear(4, 2).double()})
    a = adapter(1, {"0": 2})
    rw.adapters.put_(outer, a, prefix="encoder")
    other = plain()
    rw.adapters.put_(other, a)
    assert torch.equal(outer["encoder"](batch(0)[0]), other(batch(0)[0]))
    with pytest.raises(ValueError, match="`prefix`: the model has no part 'encodr'; its parts"):
        rw.adapters.put_(outer, a, prefix="encodr")


def test_what_does_not_belong_together_changes_nothing():
    wide = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    before = bits(wide)
    for a, error in (
        (adapter(1, {"0": 2}), r"layer '0' has shape \(5, 6\), the model's has \(5, 7\)"),
        (adapter(1, {"4": 2}), "the model has no linear layer '4'.*Its layers are: "),
        (rw.adapters.take(head()), "the model has no parameter '1.weight'"),
    ):
        with pytest.raises(ValueError, match=error):
            rw.adapters.put_(wide, a)
        assert same(before, bits(wide))
    model = head()
    with pytest.raises(ValueError, match=r"has no '1.bias', which trains in the model"):
        rw.adapters.put_(model, rw.adapters.take(model).without_dense())
    with pytest.raises(TypeError, match="must be an Adapter, got str"):
        rw.adapters.put_(model, "folder/")
    with pytest.raises(ValueError, match="no low-rank layer to take"):
        rw.adapters.take(nn.Linear(2, 2))
    rw.merge_(model)
    with pytest.raises(ValueError, match="layer '0' is merged; call `unmerge_"):
        rw.adapters.put_(model, rw.adapters.take(model))


def test_models_and_adapters_in_each_others_place_are_told(tmp_path):
    a, model = adapter(1, {"0": 2}), plain()
    for call, error in (
        (lambda: rw.adapters.put_(a, model), "`model` must be a torch.nn.Module, got Adapter"),
        (lambda: rw.adapters.take(a), "`model` must be a torch.nn.Module, got Adapter"),
        (lambda: rw.adapters.write(model, tmp_path), "got Sequential; `rankwise.save"),
        (lambda: rw.adapters.export_lora(model, tmp_path), "got Sequential; `rankwise.export_lora"),
        (lambda: rw.export_lora(a, tmp_path), "`rankwise.adapters.export_lora` takes an adapter"),
        (lambda: rw.compress.truncate_(a, rtol=0.1), r"an adapter has `adapter.rounded"),
    ):
        with pytest.raises(TypeError, match=error):
            call()
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_base_is_refused_and_not_added_to_one_of_this():
    a, other = adapter(1, {"0": 2}), plain()
    with torch.no_grad():
        other[0].weight.add_(1e-3)
    with pytest.raises(ValueError, match="the adapter: the adapter was trained on another base: 1"):
        rw.adapters.put_(other, a)
    assert isinstance(other[0], nn.Linear)
    rw.adapters.put_(other, a, other_base=True)
    b = rw.adapters.take(other)
    with pytest.raises(ValueError, match="'0' has another frozen weight in one adapter than in"):
        a + b
    model = adapted(2, {"0": 1})
    with pytest.raises(ValueError, match="trained on another base"):
        rw.adapters.put_(model, b)
    with pytest.raises(ValueError, match="trained on another base"):
        rw.adapters.put_(plain(), 2 * b)


def test_a_dense_weight_of_a_layer_to_be_adapted_is_refused_and_changes_nothing():
    models = [plain() for _ in range(2)]
    for model in models:
        rw.adapt_(model, rank=1, select="0", train="4")
    both = adapter(1, {"0": 1, "4": 2}).with_dense(rw.adapters.take(models[0]))
    before = bits(models[1])
    with pytest.raises(ValueError, match="'4.(weight|bias)' belongs to a layer to be adapted"):
        rw.adapters.put_(models[1], both)
    assert same(before, bits(models[1]))


def test_values_that_read_would_refuse_are_not_written(tmp_path):
    a = adapter(1, {"0": 2})
    path = rw.adapters.write(a, tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'0.S' has NaN or infinite values"):
        rw.adapters.write((1e300 * a).to(torch.float32), tmp_path)
    assert path.read_bytes() == before
