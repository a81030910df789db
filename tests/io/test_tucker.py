"""Files of models that mix matrices and Tucker kernels."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from foreign_files import save_file
from images import mixed, train, weights
from rankwise.io.checkpoint import load, save
from rankwise.io.export_lora import export_lora
from rankwise.io.training import load_training, save_training
from rankwise.nn import LowRankConv2d, TuckerConv2d
from rankwise.numerics.factors import Factors
from rankwise.optim.adam import Adam
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rate_free import RateFree
from rankwise.optim.tolerance import Tolerance
from rankwise.optim.update_rule import HeavyBall
from rankwise.surgery.count import count_parameters
from rankwise.surgery.plan import plan
from tucker_kernels import tucker

OPTIONS = [
    {"rule": Adam(), "lr": 1e-2},
    {"rule": HeavyBall(), "lr": 1e-2},
    {"rule": Adam(), "control": RateFree()},
]


def optimizer_of(model: nn.Module, options: dict) -> Optimizer:
    return Optimizer(model, rank_rule=Tolerance(rtol=0.2, every=4, grow=2), **options)


def test_a_file_brings_weights_and_ranks_of_all_kinds(tmp_path):
    model, other = mixed(0), mixed(1)
    train(model, optimizer_of(model, OPTIONS[0]), 0, 6)
    save(model, tmp_path)
    names = set(load_file(tmp_path / "adapter.safetensors"))
    assert {"2.U", "2.core", "2.V", "0.S", "5.S", "7.weight"} <= names and "2.S" not in names
    load(other, tmp_path)
    assert other[2].ranks == model[2].ranks != mixed()[2].ranks
    assert all(map(torch.equal, weights(model), weights(other)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_run_goes_on_bit_by_bit_after_ranks_changed(options, tmp_path):
    path = tmp_path / "run.safetensors"
    model = mixed()
    optimizer = optimizer_of(model, options)
    train(model, optimizer, 0, 6)
    save_training(path, model=model, optimizer=optimizer, progress={"step": 6})
    expected = train(model, optimizer, 6, 14)
    again = mixed(3)
    continued = optimizer_of(again, options)
    assert load_training(path, model=again, optimizer=continued) == {"step": 6}
    assert train(again, continued, 6, 14) == expected
    assert all(map(torch.equal, weights(model), weights(again)))


def rewrite(path, change, **described) -> None:
    """Change tensors of layer "0", and what is said of it."""
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["rankwise"])
    document["layers"]["0"].update(described)
    tensors = load_file(path)
    for name, new in change.items():
        tensors[f"0.{name}"] = new(tensors[f"0.{name}"]).contiguous()
    save_file(tensors, path, {"rankwise": json.dumps(document)})


def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path, draw):
    model = nn.Sequential(TuckerConv2d(tucker(6, 5, (3, 3), (3, 2), draw)))
    before = weights(model)
    f = Factors(*tucker(6, 45, (1, 1), (3, 3), draw))
    matrix = LowRankConv2d(f._replace(S=f.S[:, :, 0, 0]), 3)
    flat = TuckerConv2d(tucker(6, 5, (1, 9), (3, 2), draw))
    for other, error in (
        (matrix, "saved as a matrix, the model has a tucker"),
        (flat, r"kernel size \(1, 9\), the model has \(3, 3\)"),
    ):
        save(nn.Sequential(other), tmp_path)
        with pytest.raises(ValueError, match=error):
            load(model, tmp_path)
    save(model, tmp_path)
    with pytest.raises(
        ValueError, match="layer '0' cannot be adapted: it was saved without a base"
    ):
        load(nn.Sequential(nn.Conv2d(5, 6, 3)), tmp_path)
    for change, error in (
        ({"core": lambda core: core.reshape(3, 2, 1, 9)}, "kernel size"),
        ({"core": lambda core: core[:2]}, r"layer '0': factors must be U \(out, p\)"),
        ({"V": lambda V: 2 * V}, "'0.V' are not orthonormal"),
    ):
        path = save(model, tmp_path)
        rewrite(path, change)
        with pytest.raises(ValueError, match=error):
            load(model, tmp_path)
    for kind in ("cp", ["tucker"]):
        rewrite(save(model, tmp_path), {}, kind=kind)
        with pytest.raises(ValueError, match="layer '0' is a .*known are matrix, tucker"):
            load(model, tmp_path)
    assert all(map(torch.equal, before, weights(model)))


def test_a_file_without_kinds_is_of_matrices(tmp_path, draw):
    model, other = nn.Sequential(mixed(0)[5]), nn.Sequential(mixed(1)[5])
    path = save(model, tmp_path)
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["rankwise"])
    del document["layers"]["0"]["kind"]
    save_file(load_file(path), path, {"rankwise": json.dumps(document)})
    load(other, tmp_path)
    assert all(map(torch.equal, weights(model), weights(other)))


def test_counting_planning_and_export_know_the_kernel(tmp_path):
    model = mixed()
    layers = (model[0], model[2], model[5])
    held = sum(t.numel() for layer in layers for t in layer.factors())
    assert count_parameters(model).factors == held
    assert "already low rank (4 x 3)" in str(plan(model))
    with pytest.raises(ValueError, match="layer '0' has no frozen weight"):
        export_lora(model, tmp_path)
    with pytest.raises(ValueError, match="layer '0' has no frozen weight"):
        export_lora(nn.Sequential(model[2]), tmp_path)
