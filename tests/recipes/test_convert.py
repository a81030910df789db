"""`rankwise convert`: from one file of an adapter to another."""

import json
import warnings

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import rankwise as rw
from peft_models import Images, bert, build, gpt2, llama, output, write_lora
from rankwise.cli.main import main
from rankwise.recipes.weight_files import read_lora

TARGETS = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 6, "lora_alpha": 9}


def read_by_peft(make, folder) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return output(
            peft.PeftModel.from_pretrained(
                build(make), str(folder), autocast_adapter_dtype=False
            ).eval()
        )


def run(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def metrics(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_lora_becomes_a_smaller_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    write_lora(llama, tmp_path / "lora", **TARGETS)
    assert run(tmp_path / "lora", tmp_path / "small", "--max-rank", 2) == 0
    printed = capsys.readouterr().out
    kind = "model.layers.*.mlp.down_proj "
    for words in ("rank before", kind, "readable by: PEFT", "written: "):
        assert words in printed
    model = build(llama)
    rw.load(model, tmp_path / "lora")
    rw.compress.truncate_(model, max_rank=2)
    assert (read_by_peft(llama, tmp_path / "small") - output(model)).abs().max() < 1e-12
    m = metrics(tmp_path / "small")
    assert {layer["rank"] for layer in m["layers"].values()} == {2}
    assert m["bytes"]["after"] < 0.5 * m["bytes"]["before"] and 0 < m["relative_error"] < 1
    assert (tmp_path / "small" / "ranks.png").stat().st_size > 5000


CASES = {
    "llama": (llama, TARGETS),
    "bert with a head": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "an embedding": (llama, {"target_modules": ["embed_tokens", "k_proj"]}),
    "AdaLoRA": (llama, {"target_modules": ["q_proj", "down_proj"], "init_r": 5, "total_step": 9}),
    "convolutions": (
        Images,
        {"target_modules": ["first", "line"], "modules_to_save": ["head", "norm"]},
    ),
}


@pytest.mark.parametrize("compact", [[], ["--compact"]], ids=["padded", "compact"])
@pytest.mark.parametrize("case", CASES)
def test_without_limits_all_ways_compute_the_same(tmp_path, case, compact):
    make, options = CASES[case]
    task = "SEQ_CLS" if make is bert else None
    expected = write_lora(make, tmp_path / "lora", task_type=task, **options)
    assert run(tmp_path / "lora", tmp_path / "plain", *compact) == 0
    assert (read_by_peft(make, tmp_path / "plain") - expected).abs().max() < 1e-12
    assert run(tmp_path / "plain", tmp_path / "own", "--adapter") == 0
    model = build(make)
    rw.load(model, tmp_path / "own")
    assert (output(model) - expected).abs().max() < 1e-12
    if "modules_to_save" not in options:
        assert run(tmp_path / "own", tmp_path / "back", *compact) == 0
        assert (read_by_peft(make, tmp_path / "back") - expected).abs().max() < 1e-12
    files = [tmp_path / name / "adapter_config.json" for name in ("lora", "plain")]
    written = [json.loads(file.read_text()) for file in files]
    for field in ("task_type", "modules_to_save", "base_model_name_or_path"):
        assert (written[0][field] or None) == (written[1][field] or None)


def test_a_head_that_lora_cannot_hold_is_told(tmp_path, capsys):
    model = nn.ModuleDict({"net": build(llama), "head": nn.Linear(4, 2)})
    rw.adapt_(model, rank=2, select="q_proj", train="head")
    for layer in model.modules():
        if isinstance(layer, rw.LowRankLinear):
            layer.set_factors_(layer.factors()._replace(S=torch.eye(2)))
    rw.save(model, tmp_path / "run")
    assert run(tmp_path / "run", tmp_path / "lora", "--prefix", "net") == 0
    assert "trained, but no LoRA: head.weight, head.bias" in capsys.readouterr().out
    assert metrics(tmp_path / "lora")["left_out"] == ["head.weight", "head.bias"]
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.model.layers.") for key in keys)


def test_a_name_in_safetensors_is_a_file(tmp_path):
    expected = write_lora(llama, tmp_path / "lora", **TARGETS)
    assert run(tmp_path / "lora", tmp_path / "one.safetensors", "--tolerance", 0.0) == 0
    model = build(llama)
    rw.load(model, tmp_path / "one.safetensors")
    assert (output(model) - expected).abs().max() < 1e-12
    assert sorted(p.name for p in tmp_path.glob("one.*")) == [
        "one.metrics.json",
        "one.ranks.png",
        "one.safetensors",
    ]


def test_half_precision_becomes_float32(tmp_path):
    write_lora(llama, tmp_path / "lora", **TARGETS)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({key: t.bfloat16() for key, t in load_file(file).items()}, file)
    assert run(tmp_path / "lora", tmp_path / "small") == 0
    with safe_open(tmp_path / "small" / "adapter_model.safetensors", "pt") as written:
        assert {written.get_slice(key).get_dtype() for key in written.keys()} == {"F32"}


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
    write_lora(llama, tmp_path / "lora", **TARGETS)
    assert run(tmp_path / "lora", tmp_path / "out") == 0
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert run(tmp_path / "lora", tmp_path / "out", "--max-rank", 1) == 2
    assert "--overwrite replaces" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    assert run(tmp_path / "bad", tmp_path / "out", "--overwrite") == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
    assert run(tmp_path / "lora", tmp_path / "out", "--overwrite", "--adapter") == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"adapter.safetensors", "metrics.json", "ranks.png", "SHA256SUMS"}


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["lora", "out", "--max-rank", "0"], "--max-rank must be at least 1, got 0"),
        (["lora", "out", "--tolerance", "2"], "--tolerance must be in [0, 1), got 2.0"),
        (["lora", "out", "--adapter", "--compact"], "--compact is a layout of a LoRA"),
        (["lora", "a.safetensors", "--prefix", "x"], "--prefix is for a LoRA"),
        (["lora", "lora"], "lora is where the adapter is: write the new one to another folder"),
        (["lora", "lora/a.safetensors"], "is where the adapter is"),
        (["lroa", "out"], "there is no folder lroa"),
        ([], "there is no runs/finetune/lora, which `rankwise finetune` writes"),
        (["lora", "file"], "file is a file; a LoRA is a folder"),
        (["lora", "out", "--prefix", "encoder"], "is not inside the part of the model"),
        (["whole", "out"], "layer '0' is a whole weight in factors, not an adapter"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, monkeypatch, capsys, arguments, error):
    monkeypatch.chdir(tmp_path)
    write_lora(llama, tmp_path / "lora", **TARGETS)
    (tmp_path / "file").write_text("")
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    rw.factorize_(net, rank=2, select="0")
    rw.save(net, tmp_path / "whole")
    assert run(*arguments) == 2
    told = capsys.readouterr().err.strip()
    assert error in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_examination_reads_loras_of_every_map(tmp_path):
    for make, targets in (
        (Images, ["first", "line", "head"]),
        (bert, ["word_embeddings", "query"]),
    ):
        folder = tmp_path / make.__name__
        write_lora(make, folder, target_modules=targets, r=3, lora_alpha=6)
        found, expected = read_lora(folder).weights, rw.adapters.read(folder).layers
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            W = weight.scale * weight.point.dense()
            torch.testing.assert_close(W, expected[name].factors.dense(), rtol=0, atol=1e-12)
