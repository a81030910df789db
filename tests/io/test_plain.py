"""What is saved of a plain model loads without rankwise, by the words of its own card."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import rankwise as rw
from cases import close
from plain_networks import SELECT, network
from rankwise.io.card import Card, Measurement
from rankwise.io.load_plain import load_plain
from rankwise.io.plain import save_plain
from rankwise.nn import TuckerConv2d
from rankwise.surgery.thin import thin_layers

NAMES = ["linear", "convolutions", "tied", "transformer"]

WITHOUT = """
import re, sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "rankwise":
            raise AssertionError("the card imports rankwise")
sys.meta_path.insert(0, Refuse())
import torch
from plain_networks import networks
from torch import nn
(code,) = re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.S)
torch.manual_seed(5)
dense_model, _ = networks()[sys.argv[1]]
for p in dense_model.parameters():
    nn.init.normal_(p)
exec(compile(code, "README.md", "exec"))
with torch.no_grad():
    torch.save(model(torch.load("x.pt")), "y.pt")
print(sum(p.numel() for p in model.parameters()))
"""  # fmt: skip


def run_card(folder, name, x) -> tuple[torch.Tensor, int]:
    """What the model of the card's own code computes of `x`, and how many parameters it has."""
    torch.save(x, folder / "x.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, name], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "y.pt"), int(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_shrunk_model_loads_by_its_card_where_rankwise_cannot_be_imported(name, draw, tmp_path):
    model, x = network(name, draw)
    before = sum(p.numel() for p in model.parameters())
    rw.factorize_(model, rank=2, select=SELECT.get(name))
    small = rw.shrink(model)
    done = save_plain(small, tmp_path, example=x)
    y, parameters = run_card(tmp_path, name, x)
    with torch.no_grad():
        close(y, small(x), 0.0)
    assert parameters == done.after < done.before == before
    assert not done.attentions and "without rankwise: yes" in str(done)


@pytest.mark.parametrize("name", ["tied", "transformer"])
def test_a_densified_model_is_saved_as_the_dense_one_is(name, draw, tmp_path):
    model, x = network(name, draw)
    names = set(model.state_dict())
    rw.factorize_(model, rank=2)
    rw.densify_(model)
    done = save_plain(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == names - {"out.weight"}
    assert done.before == done.after and not done.thin
    with torch.no_grad():
        close(run_card(tmp_path, name, x)[0], model(x), 0.0)


def test_the_card_tells_what_was_removed_and_measured(draw, tmp_path):
    model, x = network("linear", draw)
    rw.factorize_(model, rank=2)
    plan = rw.plan_factorize(network("linear", draw)[0], rank=2, example=x)
    card = Card("Small", "`dense()`", "Cut.", [Measurement("accuracy", 98.1, "97.9", "test rows")])
    done = save_plain(rw.shrink(model), tmp_path, card=card, example=x)
    text = (tmp_path / "README.md").read_text()
    assert done.after == plan.kept
    for line in (
        "# Small\n\nCut.\n",
        "1 layers of `dense()` are low rank",
        f"Parameters: {done.before:,} before, {plan.kept:,} now",
        f"one example: {3 * 12 * 20:,} before, {3 * 2 * 32:,} now",
        "| `0` | Linear | 20x12 | 2 | 240 | 64 |",
        "| accuracy | 98.1 | 97.9 | test rows |",
    ):
        assert line in text


def test_products_and_weights_of_the_pairs_are_those_of_the_plan(draw, tmp_path):
    model, x = network("convolutions", draw)
    plan = rw.plan_factorize(model, rank=2, example=x)
    rw.factorize_(model, rank=2)
    pairs = thin_layers(rw.shrink(model))
    told = [(p.name, p.shape, p.rank, p.weights, p.kept) for p in pairs]
    assert told == [(p.name, p.shape, str(p.rank), p.weights, p.kept) for p in plan.factorized]
    save_plain(rw.shrink(model), tmp_path, example=x)
    one, two = (sum(getattr(p, k) for p in plan.factorized) for k in ("products", "products_kept"))
    assert f"one example: {one:,} before, {two:,} now" in (tmp_path / "README.md").read_text()


def test_tied_weights_are_stored_once_and_are_tied_when_loaded(draw, tmp_path):
    model, x = network("tied", draw)
    rw.factorize_(model, rank=3)
    small = rw.shrink(model)
    done = save_plain(small, tmp_path)
    held = sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values())
    assert held == done.after == sum(p.numel() for p in small.parameters())
    by_name = {pair.name: pair for pair in done.thin}
    assert (by_name["table"].weights, by_name["out"].weights) == (13 * 8, 0)
    assert (by_name["table"].kept, by_name["out"].kept) == (3 * 21, 3 * 8)
    dense = network("tied", draw)[0]
    loaded = load_plain(dense, tmp_path / "model.safetensors")
    assert loaded.table[0].weight is loaded.out[1].weight
    assert isinstance(dense.table, nn.Embedding)
    close(loaded(x), small(x), 0.0)


def test_the_card_of_split_attention_says_that_it_needs_rankwise_and_works_with_it(draw, tmp_path):
    model, x = network("transformer", draw)
    rw.factorize_(model, rank=2)
    small = rw.shrink(model)
    done = save_plain(small, tmp_path)
    assert done.attentions == ("layers.0.self_attn", "layers.1.self_attn")
    text = (tmp_path / "README.md").read_text()
    assert "not free of rankwise" in text and "without rankwise: no" in str(done)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    code = code.replace('"model.safetensors"', repr(str(tmp_path / "model.safetensors")))
    names = {"dense_model": network("transformer", draw)[0]}
    exec(code, names)
    with torch.no_grad():
        close(names["model"](x), small(x), 0.0)


@pytest.mark.parametrize("rank", [2, 7])
def test_layers_of_hugging_faces_kind_load_into_their_dense_twin(rank, draw, tmp_path):
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

    def twin() -> nn.Module:
        return nn.Sequential(Conv1D(16, 16), nn.Tanh(), Conv1D(24, 16), Conv1D(24, 24))

    model, x = twin(), torch.randn(3, 16, generator=draw)
    rw.factorize_(model, rank=rank, select=["0", "2"])
    if rank == 7:
        rw.densify_(model)
    else:
        model = rw.shrink(model)
    save_plain(model, tmp_path)
    close(load_plain(twin(), tmp_path / "model.safetensors")(x), model(x), 0.0)


def test_low_rank_layers_are_refused_and_nothing_is_written(draw, tmp_path):
    model, _ = network("linear", draw)
    rw.factorize_(model, rank=2)
    with pytest.raises(ValueError, match=r"low rank still. Save `rw\.shrink\(model\)`"):
        save_plain(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_of_another_width_do_not_load(draw, tmp_path):
    model, _ = network("linear", draw)
    rw.factorize_(model, rank=2)
    save_plain(rw.shrink(model), tmp_path)
    other = nn.Sequential(nn.Linear(12, 21), nn.ReLU(), nn.Linear(21, 2))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_plain(other, tmp_path / "model.safetensors")
    assert isinstance(other[0], nn.Linear)


def test_a_tucker_kernel_is_three_convolutions_to_the_card_and_loads_by_it(draw, tmp_path):
    model, x = network("convolutions", draw)
    plan = rw.factorize_(model, rank=2, convolution=TuckerConv2d)
    planned = rw.plan_factorize(network("convolutions", draw)[0], rank=2, example=x,
                                convolution=TuckerConv2d)  # fmt: skip
    small = rw.shrink(model)
    done = save_plain(small, tmp_path, example=x)
    image = next(t for t in done.thin if t.name == "image")
    assert (image.shape, image.rank) == ((8, 54), "2, 2")
    assert done.after == plan.kept and done.before == plan.total
    y, parameters = run_card(tmp_path, "convolutions", x)
    with torch.no_grad():
        close(y, small(x), 0.0)
    assert parameters == done.after
    products = sum(p.products_kept for p in planned.factorized)
    assert f"{products:,} now" in (tmp_path / "README.md").read_text()
