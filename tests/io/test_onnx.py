"""Exports of shrunk models: `torch.export` and ONNX compute what the model does."""

import builtins
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import rankwise as rw
from cases import close
from plain_networks import network
from rankwise.io.onnx import export_onnx

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs `pip install rankwise[onnx]`",
)
NAMES = ["linear", "convolutions", "tied", "transformer"]


def shrunk(name, draw, select=None) -> tuple[nn.Module, torch.Tensor]:
    model, x = network(name, draw)
    rw.factorize_(model, rank=2, select=select)
    return rw.shrink(model), x


@pytest.mark.parametrize("name", NAMES)
def test_torch_export_takes_any_batch_of_every_shrunk_model(name, draw):
    model, x = shrunk(name, draw)
    batches = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (x,), dynamic_shapes=batches).module()
    for rows in (x, x.repeat(3, *[1] * (x.ndim - 1))):
        with torch.no_grad():
            close(program(rows), model(rows), 1e-6)


@needs_onnx
@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_computes_every_shrunk_model_for_any_batch(name, draw, tmp_path):
    model, x = shrunk(name, draw)
    model.train()
    done = export_onnx(model, x, tmp_path / "new" / "model.onnx")
    assert set(done.differences) == {len(x), 2 * len(x) + 1}
    assert max(done.differences.values()) < 1e-5
    assert all(module.training for module in model.modules())
    assert [path.name for path in done.path.parent.iterdir()] == ["model.onnx"]
    assert f"{done.path.stat().st_size:,} bytes" in str(done)


@needs_onnx
def test_the_file_of_a_shrunk_model_is_smaller(draw, tmp_path):
    model = nn.Sequential(nn.Linear(200, 300))
    x = torch.randn(1, 200, generator=draw)
    whole = export_onnx(model, x, tmp_path / "whole.onnx").size
    rw.factorize_(model, rank=5)
    small = export_onnx(rw.shrink(model), x, tmp_path / "small.onnx").size
    assert whole - small == pytest.approx(4 * (200 * 300 - 5 * 500), abs=4000)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 6))

    def forward(self, x, scale):
        return {"y": self.map(x) * scale[:, None], "sum": x.sum(1)}


@needs_onnx
def test_several_inputs_by_place_and_by_name(draw, tmp_path):
    x, scale = torch.randn(2, 6, generator=draw), torch.tensor([2.0, 3.0])
    for example in ((x, scale), {"scale": scale, "x": x}):
        done = export_onnx(Named(), example, tmp_path / "model.onnx")
        assert max(done.differences.values()) < 1e-5


class OfBatch(nn.Module):
    """Depends on the batch in a way that an export does not see."""

    def forward(self, x):
        return x * (2.0 if torch.compiler.is_compiling() else 1.0)


@needs_onnx
def test_a_file_that_computes_something_else_replaces_nothing(draw, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("as before")
    with pytest.raises(RuntimeError, match="differs from torch by .* on a batch of 2"):
        export_onnx(OfBatch(), torch.randn(2, 3, generator=draw), path)
    assert path.read_text() == "as before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_mistakes_are_told(draw, tmp_path, monkeypatch):
    model, x = network("linear", draw)
    path = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match="must consist of tensors, got int"):
        export_onnx(model, (x, 3), path)
    with pytest.raises(ValueError, match=r"one batch .* got \(3, 12\), \(2,\)"):
        export_onnx(model, (x, torch.ones(2)), path)
    rw.factorize_(model, rank=2)
    with pytest.raises(ValueError, match="low rank still"):
        export_onnx(model, x, path)
    real = builtins.__import__

    def without(name, *args):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"rankwise\[onnx\]"):
        export_onnx(rw.shrink(model), x, path)
    assert not path.exists()
