"""An adapter goes onto the base that it was trained on, in any precision, and onto no other."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import rankwise as rw
from foreign_files import save_file
from rankwise.io.training import load_training, save_training
from rankwise.numerics.fingerprint import SIZE


def base(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


def adapted(seed: int = 0) -> nn.Sequential:
    model = base(seed)
    rw.adapt_(model, rank=2)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.S.copy_(torch.eye(2))
    return model


def test_another_base_is_refused_by_name_and_left_unchanged(tmp_path):
    rw.save(adapted(), tmp_path)
    other = base(1)
    with pytest.raises(
        ValueError, match=r"trained on another base: 2 of 2 layers.* by up to 1\d\d %"
    ):
        rw.load(other, tmp_path)
    assert isinstance(other[0], nn.Linear)
    ready = adapted(1)
    with torch.no_grad():
        ready[0].S.zero_()
    with pytest.raises(ValueError, match="trained on another base"):
        rw.load(ready, tmp_path)
    assert not ready[0].S.any()


def test_one_changed_layer_is_named(tmp_path):
    rw.save(adapted(), tmp_path)
    model = base()
    with torch.no_grad():
        model[2].weight.add_(1e-3)
    with pytest.raises(
        ValueError, match=r"1 of 2 layers have another frozen weight, by up to 0\.\d+ %: 2"
    ):
        rw.load(model, tmp_path)


def test_another_base_is_taken_on_purpose(tmp_path):
    path = rw.save(adapted(), tmp_path)
    for other in (base(1), adapted(1)):
        rw.load(other, path, other_base=True)
        assert torch.equal(other[0].S, torch.eye(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_base_in_another_precision_is_taken_without_a_word(tmp_path, dtype):
    rw.save(adapted(), tmp_path)
    model = base().to(dtype)
    rw.load(model, tmp_path)
    assert model[0].base.weight.dtype == dtype
    rw.save(model, tmp_path / "again")
    rw.load(base(), tmp_path / "again")


def test_a_merged_model_is_known_by_its_weight_before_the_merge(tmp_path):
    model = adapted()
    rw.merge_(model)
    rw.save(model, tmp_path)
    rw.load(base(), tmp_path)


def test_an_adapter_on_a_merged_adapter_needs_that_base(tmp_path):
    model = adapted()
    rw.merge_(model, final=True)
    rw.adapt_(model, rank=1)
    rw.save(model, tmp_path)
    with pytest.raises(ValueError, match="another base"):
        rw.load(base(), tmp_path)


class Quantised(nn.Linear):
    """With a weight of one byte a number, as far as `load` can see."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.weight = nn.Parameter((linear.weight * 100).to(torch.int8), requires_grad=False)


def test_a_quantised_base_is_taken_as_it_is(tmp_path):
    rw.save(adapted(), tmp_path)
    model = base()
    model[0], model[2] = Quantised(model[0]), Quantised(model[2])
    rw.load(model, tmp_path)
    path = rw.save(model, tmp_path / "quantised")
    assert "fingerprint" not in str(document(path))
    rw.load(base(1), path)


def document(path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["rankwise"])


def rewritten(path, change) -> None:
    content, tensors = document(path), load_file(path)
    change(content["layers"]["0"])
    save_file(tensors, path, metadata={"format": "pt", "rankwise": json.dumps(content)})


def test_a_file_from_before_there_were_fingerprints_is_read(tmp_path):
    path = rw.save(adapted(), tmp_path)
    rewritten(path, lambda entry: entry.pop("fingerprint"))
    other = base()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    rw.load(other, path)


@pytest.mark.parametrize("value", ["?", "AAA=", "", 3, "AAAA" * 200], ids=str)
def test_a_broken_fingerprint_is_told(tmp_path, value):
    path = rw.save(adapted(), tmp_path)
    rewritten(path, lambda entry: entry.update(fingerprint=value))
    with pytest.raises(ValueError, match="the fingerprint of layer '0'"):
        rw.load(base(), path)


def test_it_takes_little_room(tmp_path):
    entry = document(rw.save(adapted(), tmp_path))["layers"]["0"]
    assert len(entry["fingerprint"]) <= 4 * SIZE * 4 / 3 + 4


def test_a_training_does_not_go_on_upon_another_base(tmp_path):
    path = tmp_path / "state.safetensors"
    model = adapted()
    save_training(path, model=model, optimizer=rw.Optimizer(model), progress={})
    other = adapted(1)
    with pytest.raises(ValueError, match="another base"):
        load_training(path, model=other, optimizer=rw.Optimizer(other))
    same = adapted()
    assert load_training(path, model=same, optimizer=rw.Optimizer(same)) == {}


def test_types_and_devices_by_default_have_no_part_in_it(tmp_path):
    path, model = rw.save(adapted(), tmp_path), base()
    with torch.device("meta"):
        rw.load(model, path)
    assert not model[0].U.is_meta
