"""The adapter file: what goes in comes out, and what should not come in does not."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from foreign_files import save_file
from rankwise.io.atomic import replacing, write_text
from rankwise.io.checkpoint import load, save
from rankwise.io.tensor_file import write_tensors
from rankwise.nn import LowRankConv2d, LowRankLinear
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd, variance_preserving
from rankwise.surgery.adapt import adapt_
from rankwise.surgery.layers import factored_layers
from rankwise.surgery.merge import merge_


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    )


def trained(*ranks: int, scale: float = 0.5) -> nn.Sequential:
    """Two adapted layers of those ranks, a trained head and running statistics."""
    model = plain()
    adapt_(model, rank=2, select=["0", "2"], train="4", scale=scale)
    draw = torch.Generator().manual_seed(3)
    for (m, n), rank, layer in zip(
        [(5, 6), (4, 5)], ranks, factored_layers(model).values(), strict=True
    ):
        layer.set_factors_(truncated_svd(torch.randn(m, n, generator=draw), rank))
    with torch.no_grad():
        model[4].weight.add_(1.0)
    model(torch.randn(8, 6, generator=draw))
    return model


X = torch.linspace(-1, 1, 30).reshape(5, 6)


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(X)


@pytest.mark.parametrize("ranks", [(1, 1), (1, 4), (5, 2)])
def test_a_plain_model_becomes_the_saved_one(tmp_path, ranks):
    model = trained(*ranks)
    path = save(model, tmp_path / "run")
    assert path == tmp_path / "run" / "adapter.safetensors"
    fresh = plain()
    load(fresh, tmp_path / "run")
    assert torch.equal(output(fresh), output(model))
    assert tuple(layer.rank for layer in factored_layers(fresh).values()) == ranks
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} == expected


def test_an_adapted_model_takes_the_ranks_of_the_file(tmp_path):
    model = trained(1, 4)
    save(model, tmp_path)
    other = plain()
    adapt_(other, rank=3, select=["0", "2"], train="4", scale=0.5, seed=5)
    parameters = [p for layer in factored_layers(other).values() for p in (layer.U, layer.V)]
    load(other, tmp_path / "adapter.safetensors")
    assert torch.equal(output(other), output(model))
    after = [p for layer in factored_layers(other).values() for p in (layer.U, layer.V)]
    assert all(a is b for a, b in zip(parameters, after, strict=True))


def test_the_file_holds_true_shapes_and_names(tmp_path):
    tensors = load_file(save(trained(1, 4), tmp_path))
    assert tuple(tensors["0.U"].shape) == (5, 1)
    assert tuple(tensors["2.S"].shape) == (4, 4)
    assert set(tensors) == {
        *(f"{layer}.{letter}" for layer in (0, 2) for letter in "USV"),
        *("4.weight", "4.bias"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }


def test_the_whole_model_may_be_one_layer_when_it_is_adapted(tmp_path):
    layer = trained(1, 4)[0]
    path = save(layer, tmp_path)
    assert {"U", "S", "V"} == set(load_file(path))
    before = layer.factors().dense().clone()
    layer.set_factors_(truncated_svd(torch.randn(5, 6), 3))
    load(layer, path)
    assert torch.equal(layer.factors().dense(), before)


def test_a_module_used_twice_is_in_the_file_once(tmp_path):
    def shared() -> nn.Sequential:
        torch.manual_seed(0)
        linear = nn.Linear(4, 4)
        return nn.Sequential(linear, nn.Tanh(), linear)

    model = shared()
    adapt_(model, rank=2)
    with torch.no_grad():
        model[0].S.add_(1.0)
    assert set(load_file(save(model, tmp_path))) == {"0.U", "0.S", "0.V"}
    fresh = shared()
    load(fresh, tmp_path)
    x = torch.randn(3, 4)
    assert fresh[0] is fresh[2]
    assert torch.equal(fresh(x), model(x))


def test_a_low_precision_model_keeps_float32_factors(tmp_path):
    model = plain().bfloat16()
    adapt_(model, rank=2, select="2")
    save(model, tmp_path)
    fresh = plain().bfloat16()
    load(fresh, tmp_path)
    assert fresh[2].U.dtype == torch.float32
    assert torch.equal(fresh[2].U, model[2].U)


def test_a_merged_model_saves_its_factors_but_does_not_load(tmp_path):
    model = trained(1, 4)
    expected = output(model)
    merge_(model)
    save(model, tmp_path)
    fresh = plain()
    load(fresh, tmp_path)
    assert torch.equal(output(fresh), expected)
    with pytest.raises(ValueError, match="merged; call `unmerge_"):
        load(model, tmp_path)


def test_a_model_without_factors_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no low-rank layer to save"):
        save(plain(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_with_nan_does_not_overwrite_a_good_file(tmp_path):
    model = trained(1, 4)
    before = save(model, tmp_path).read_bytes()
    with torch.no_grad():
        model[0].S.fill_(float("nan"))
    with pytest.raises(ValueError, match="entry '0.S' has NaN or infinite values"):
        save(model, tmp_path)
    assert (tmp_path / "adapter.safetensors").read_bytes() == before


def rewrite(path, change):
    """Write the file again after `change(tensors, document)`; both may be changed in place."""
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["rankwise"])
    tensors = load_file(path)
    change(tensors, document)
    save_file(tensors, path, metadata={"rankwise": json.dumps(document)})


def _delete(name):
    return lambda tensors, document: tensors.pop(name)


def _set(name, value):
    return lambda tensors, document: tensors.__setitem__(name, value)


def _fill(name, value):
    return lambda tensors, document: tensors[name].fill_(value)


def _scale(name, value):
    return lambda tensors, document: tensors[name].mul_(value)


def _describe(*keys_and_value):
    def change(tensors, document):
        *keys, last, value = keys_and_value
        for key in keys:
            document = document[key]
        document[last] = value

    return change


def _forget_layer(tensors, document):
    for letter in "USV":
        del tensors[f"2.{letter}"]
    del document["layers"]["2"]


HOSTILE = {
    "missing factor": (_delete("0.V"), "tensor '0.V' is missing"),
    "missing dense": (_delete("4.bias"), "tensor '4.bias' is missing"),
    "unexpected": (_set("7.U", torch.ones(2)), "tensor '7.U' is unexpected"),
    "wrong shape": (_set("0.V", torch.eye(7)[:, :1].contiguous()), r"layer '0' has shape \[5, 6\]"),
    "ranks disagree": (_set("0.U", torch.eye(5)[:, :2].contiguous()), "layer '0': factors must be"),
    "vector": (_set("0.S", torch.ones(1)), "layer '0': factors must be floating-point matrices"),
    "integers": (_set("0.S", torch.ones(1, 1, dtype=torch.int64)), "layer '0': factors must be"),
    "nan": (_fill("2.S", float("nan")), "entry '2.S' has NaN or infinite values"),
    "8 bits": (_set("2.S", torch.ones(1, 1).to(torch.float8_e5m2)), "'2.S' is torch.float8_e5m2"),
    "scale no float": (_describe("layers", "0", "scale", 10**400), "layer '0' needs a scale"),
    "rank 0": (
        lambda tensors, _: (
            tensors.update({f"2.{n}": tensors[f"2.{n}"][:, :0] for n in "UV"})
            or tensors.update({"2.S": torch.zeros(0, 0)})
        ),
        "layer '2' has rank 0, expected at least 1",
    ),
    "inf in dense": (_fill("4.bias", float("inf")), "entry '4.bias' has NaN or infinite values"),
    "not orthonormal": (_scale("2.U", 1.01), "columns of '2.U' are not orthonormal"),
    "version": (_describe("version", 99), "has version 99 of 'rankwise-adapter'"),
    "format": (_describe("format", "other"), "has format 'other', expected 'rankwise-adapter'"),
    "no layers": (_describe("layers", {}), "'layers' of the metadata must name layers"),
    "layers a list": (_describe("layers", ["0"]), "'layers' of the metadata must name layers"),
    "scale": (_describe("layers", "0", "scale", "big"), "layer '0' needs a scale"),
    "scale nan": (_describe("layers", "0", "scale", float("nan")), "layer '0' needs a scale"),
    "scale zero": (_describe("layers", "0", "scale", 0.0), "layer '0' needs a scale"),
    "shape": (_describe("layers", "0", "shape", [1, 2]), r"layer '0' has shape \[1, 2\]"),
    "dense no list": (_describe("dense", "4.bias"), "'dense' of the metadata must be a list"),
    "twice": (_describe("dense", ["0.U", "4.weight", "4.bias"]), "entry '0.U' is described twice"),
    "other scale": (_describe("layers", "0", "scale", 2.0), "scale 2, the model has 0.5"),
    "other layers": (_forget_layer, "low-rank layer '2' is missing"),
    "dense shape": (_set("4.bias", torch.ones(9)), r"parameter '4.bias' has shape \(9,\)"),
    "dense type": (_set("4.bias", torch.ones(3, dtype=torch.int32)), "'4.bias' is torch.int32"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_a_bad_file_is_refused_by_name_and_the_model_keeps_its_values(tmp_path, case):
    change, message = HOSTILE[case]
    path = save(trained(1, 4), tmp_path)
    rewrite(path, change)
    model = trained(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load(model, path)
    assert str(path) in str(error.value)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def _rename_layer(tensors, document):
    for letter in "USV":
        tensors[f"9.{letter}"] = tensors.pop(f"0.{letter}")
    document["layers"]["9"] = document["layers"].pop("0")


def _no_base(tensors, document):
    document["layers"]["0"]["base"] = False


def _dense_inside(tensors, document):
    tensors["0.weight"] = torch.zeros(5, 6)
    document["dense"].append("0.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_layer, "the model has no linear layer '9'"),
        (_no_base, "layer '0' cannot be adapted: it was saved without a base"),
        (_dense_inside, "parameter '0.weight' belongs to a layer to be adapted"),
        (_delete("2.S"), "tensor '2.S' is missing"),
    ],
)
def test_a_plain_model_is_not_half_adapted_by_a_bad_file(tmp_path, change, message):
    path = save(trained(1, 4), tmp_path)
    rewrite(path, change)
    model = plain()
    with pytest.raises(ValueError, match=message):
        load(model, path)
    assert not factored_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_another_architecture_is_refused_with_both_shapes(tmp_path):
    save(trained(1, 4), tmp_path)
    other = nn.Sequential(
        nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    )
    with pytest.raises(ValueError, match=r"layer '0' has shape \(5, 6\), the model's has \(5, 7\)"):
        load(other, tmp_path)


def test_a_head_that_trains_in_the_model_must_be_in_the_file(tmp_path):
    model = plain()
    adapt_(model, select=["0", "2"], scale=0.5)
    save(model, tmp_path)
    with pytest.raises(ValueError, match="has no '4.bias', which trains in the model"):
        load(trained(1, 1), tmp_path)


def test_files_that_are_not_ours_are_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(plain(), tmp_path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="was not written by rankwise"):
        load(plain(), path)
    save_file({"a": torch.ones(1)}, path, metadata={"rankwise": "{broken"})
    with pytest.raises(ValueError, match="in the metadata is damaged"):
        load(plain(), path)
    twice = '{"format": "rankwise-adapter", "format": "rankwise-adapter"}'
    save_file({"a": torch.ones(1)}, path, metadata={"rankwise": twice})
    with pytest.raises(ValueError, match="entry 'format' occurs twice"):
        load(plain(), path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(plain(), path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(plain(), path)


def test_a_truncated_file_is_refused(tmp_path):
    path = save(trained(1, 4), tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(plain(), path)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_tensors_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)}, {})
    with pytest.raises(Exception, match="metadata|str"):
        write_tensors(path, {"a": torch.zeros(2)}, {"number": 3})
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_any_layout_of_tensors_is_written(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"a": base, "b": base.mT, "c": base[:, :1]}, {})
    back = load_file(tmp_path / "x.safetensors")
    assert torch.equal(back["b"], base.mT) and torch.equal(back["c"], base[:, :1])


def test_rank_deficient_and_zero_cores_are_kept(tmp_path):
    model = trained(2, 2)
    layer = model[0]
    f = layer.factors()
    layer.set_factors_(Factors(f.U, torch.zeros_like(f.S), f.V))
    save(model, tmp_path)
    fresh = plain()
    load(fresh, tmp_path)
    assert fresh[0].rank == 2
    assert torch.equal(fresh[0].U, layer.U)


def test_a_kernel_of_another_form_is_refused(tmp_path):
    like = torch.empty(0)
    f = variance_preserving(4, 18, 2, generator=torch.Generator().manual_seed(0), like=like)
    square, flat = (nn.Sequential(LowRankConv2d(f, size)) for size in (3, (1, 9)))
    path = save(square, tmp_path)
    load(nn.Sequential(LowRankConv2d(f, 3)), tmp_path)
    with pytest.raises(ValueError, match=r"kernel size \(3, 3\), the model has \(1, 9\)"):
        load(flat, tmp_path)
    with pytest.raises(ValueError, match="the model has None"):
        load(nn.Sequential(LowRankLinear(f)), path)


def test_a_file_of_a_part_goes_into_a_model_that_holds_it(tmp_path):
    model = trained(1, 4)
    save(model, tmp_path)
    wrapped = nn.ModuleDict({"part": plain(), "norm": nn.BatchNorm1d(3)})
    kept = wrapped["norm"].running_mean.clone()
    load(wrapped, tmp_path, prefix="part.")
    assert torch.equal(output(wrapped["part"]), output(model))
    assert torch.equal(wrapped["norm"].running_mean, kept)
    with pytest.raises(ValueError, match="`prefix`: the model has no part 'prat'; its parts are p"):
        load(wrapped, tmp_path, prefix="prat")


def test_a_file_from_before_layers_told_their_map_is_read(tmp_path):
    model = trained(1, 4)
    file = save(model, tmp_path)
    with safe_open(file, framework="pt") as opened:
        content = json.loads(opened.metadata()["rankwise"])
    for entry in content["layers"].values():
        assert entry.pop("map") == "linear"
    save_file(load_file(file), file, metadata={"rankwise": json.dumps(content)})
    fresh = plain()
    load(fresh, tmp_path)
    assert torch.equal(output(fresh), output(model))


@pytest.mark.parametrize(
    "entry, error",
    [
        ({"map": "matrix"}, "has map 'matrix', known are linear, embedding"),
        ({"map": "conv2d"}, "is a 2d convolution with kernel size None"),
        ({"map": "embedding"}, "is an embedding, the model's is a linear map"),
        ({"map": "conv2d", "kernel_size": [3, 3]}, "has no kernels of"),
        ({"map": "conv2d", "kernel_size": [0, 3]}, "has no kernels of"),
    ],
)
def test_a_layer_of_another_map_is_refused(tmp_path, entry, error):
    file = save(trained(1, 4), tmp_path)
    with safe_open(file, framework="pt") as opened:
        content = json.loads(opened.metadata()["rankwise"])
    content["layers"]["2"] |= entry
    save_file(load_file(file), file, metadata={"rankwise": json.dumps(content)})
    with pytest.raises(ValueError, match=f"layer '2'.*{error}"):
        load(plain(), tmp_path)


def test_two_entries_for_one_layer_of_the_model_are_refused(tmp_path):
    def layers(**named):
        return nn.ModuleDict(named)

    both = layers(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    adapt_(both, rank=2)
    one = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="holds both 'a' and 'b', one layer in the model"):
        load(layers(a=one, b=one), save(both, tmp_path), other_base=True)
