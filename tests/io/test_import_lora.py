"""Adapters that PEFT made, in a model of rankwise's, and back."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from foreign_files import save_file
from peft_models import IMAGES, TOKENS, Images, bert, build, gpt2, llama, output, write_lora
from rankwise.io.checkpoint import load, save
from rankwise.io.export_lora import export_lora
from rankwise.nn import LowRankConv2d, LowRankEmbedding
from rankwise.numerics.init import zero_core
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.tolerance import Tolerance
from rankwise.surgery.adapt import adapt_
from rankwise.surgery.layers import factored_layers
from rankwise.surgery.merge import merge_, unmerge_

peft = pytest.importorskip("peft")

CASES = {
    "llama": (llama, {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 12}),
    "all linear": (llama, {"target_modules": "all-linear", "r": 3}),
    "a regex": (llama, {"target_modules": r".*layers\.1\..*_proj", "r": 2, "lora_alpha": 5}),
    "rslora": (llama, {"target_modules": ["up_proj"], "r": 9, "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 5, "k_proj": 2, r".*\.down_.*": 7},
            "alpha_pattern": {"q_proj": 3, "model.layers.0.mlp.down_proj": 16},
        },
    ),
    "a rank above the width": (llama, {"target_modules": ["k_proj"], "r": 40}),
    "an embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"], "r": 4}),
    "a head": (llama, {"target_modules": ["lm_head"], "r": 4}),
    "bert": (bert, {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"]}),
    "bert embeddings": (bert, {"target_modules": ["word_embeddings", "position_embeddings"]}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "r": 3}),
    "gpt2, all": (gpt2, {"target_modules": "all-linear", "r": 3}),
    "convolutions": (
        Images,
        {"target_modules": ["first", "second", "line"], "modules_to_save": ["head"], "r": 3},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_computes_what_pefts_does(tmp_path, case):
    make, options = CASES[case]
    expected = write_lora(make, tmp_path, **options)
    model = build(make)
    before = output(model)
    load(model, tmp_path)
    assert (before - expected).abs().max() > 1e-3
    assert (output(model) - expected).abs().max() < 1e-12
    for layer in factored_layers(model).values():
        for Q in (layer.U, layer.V):
            assert (Q.mT @ Q - torch.eye(layer.rank)).abs().max() < 1e-13


def test_an_adalora_is_read_at_the_ranks_that_it_was_cut_to(tmp_path):
    options = {"target_modules": ["q_proj", "k_proj", "up_proj"], "init_r": 6, "total_step": 9}
    expected = write_lora(llama, tmp_path, lora_alpha=20, **options)
    model = build(llama)
    load(model, tmp_path)
    assert (output(model) - expected).abs().max() < 1e-12
    assert {layer.rank for layer in factored_layers(model).values()} == {6}
    # What `update_and_allocate` leaves: rows by layer, and in one of them none.
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    names = sorted({key.rpartition(".lora_")[0] for key in tensors})
    ranks = {name.removeprefix("base_model.model."): i for i, name in enumerate(names)}
    kept = {name: [i < rank for i in range(6)] for name, rank in ranks.items()}
    config["rank_pattern"] = {f"{name}.lora_E": rows for name, rows in kept.items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for key, t in tensors.items():
        name, _, side = key.removeprefix("base_model.model.").rpartition(".lora_")
        rows = torch.tensor(kept[name])
        tensors[key] = (t[:, rows] if side == "B" else t[rows]).contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = build(llama)
    load(model, tmp_path)
    assert {name: x.rank for name, x in factored_layers(model).items()} == {
        name: rank for name, rank in ranks.items() if rank
    }
    assert (output(model) - output(read_by_peft(llama, tmp_path))).abs().max() < 1e-12
    export_lora(model, tmp_path / "plain")
    assert (output(read_by_peft(llama, tmp_path / "plain")) - output(model)).abs().max() < 1e-12


def test_an_adalora_of_which_something_is_missing_is_refused(tmp_path):
    write_lora(llama, tmp_path, target_modules=["q_proj"], init_r=6, total_step=9)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_E"
    for config, tensors, error in (
        ({"lora_alpha": -1}, None, "'lora_alpha' is -1.*write a positive one"),
        ({"lora_alpha": 8}, lambda t: t | {key: torch.zeros(5, 1)}, r"has lora_E \(5, 1\)"),
        ({}, lambda t: {k: v for k, v in t.items() if k != key}, "'.*q_proj' lacks lora_E"),
        ({"init_r": 0}, None, "the rank 'init_r' must be an int of at least 1"),
    ):
        edited(tmp_path, config, tensors)
        with pytest.raises(ValueError, match=error):
            load(build(llama), tmp_path)


def read_by_peft(make, folder) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(
            build(make), str(folder), autocast_adapter_dtype=False
        ).eval()


LOW_RANK_ONLY = [case for case in CASES if "modules_to_save" not in CASES[case][1]]
EVERY_MAP = {
    "convolutions": (Images, {"target_modules": ["first", "second", "line", "head"], "r": 3}),
    "embeddings": (bert, {"target_modules": ["word_embeddings", "query", "key"], "r": 5}),
}


@pytest.mark.parametrize("compact", [False, True], ids=["padded", "compact"])
@pytest.mark.parametrize("case", [*LOW_RANK_ONLY, *EVERY_MAP])
def test_what_is_exported_again_is_the_same_to_peft_and_here(tmp_path, case, compact):
    make, options = (CASES | EVERY_MAP)[case]
    expected = write_lora(make, tmp_path / "a", **options)
    model = build(make)
    load(model, tmp_path / "a")
    export = export_lora(model, tmp_path / "b", compact=compact)
    loaded = read_by_peft(make, tmp_path / "b")
    assert (output(loaded) - expected).abs().max() < 1e-12
    again = build(make)
    load(again, tmp_path / "b")
    assert (output(again) - expected).abs().max() < 1e-12
    assert export_lora(again, tmp_path / "c", compact=compact).ranks == export.ranks


@pytest.mark.parametrize("case", EVERY_MAP)
def test_an_export_names_only_programs_that_read_its_layers(tmp_path, case):
    write_lora(EVERY_MAP[case][0], tmp_path / "a", **EVERY_MAP[case][1])
    model = build(EVERY_MAP[case][0])
    load(model, tmp_path / "a")
    export = export_lora(model, tmp_path / "b")
    assert export.consumers == ("PEFT", "transformers")
    assert set(export.maps) == (
        {"linear", "conv1d", "conv2d"} if case == "convolutions" else {"linear", "embedding"}
    )


@pytest.mark.parametrize("case", EVERY_MAP)
def test_adapters_of_every_map_merge_save_train_and_adapt_their_ranks(tmp_path, case):
    make, options = EVERY_MAP[case]
    expected = write_lora(make, tmp_path / "a", **options)
    model = build(make)
    load(model, tmp_path / "a")
    merge_(model)
    assert (output(model) - expected).abs().max() < 1e-12
    unmerge_(model)
    save(model, tmp_path / "b")
    other = build(make)
    load(other, tmp_path / "b")
    assert torch.equal(output(other), output(model))
    optimizer = Optimizer(model, lr=2e-2, max_step=0.2, rank_rule=Tolerance(rtol=0.3, every=2))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        inputs = IMAGES if make is Images else TOKENS
        y = model(inputs) if make is Images else model(input_ids=inputs).logits
        loss = (y - expected - 0.1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {layer.rank for layer in factored_layers(model).values()} != {options["r"]}
    merge_(model, final=True)
    assert not factored_layers(model)


def test_the_gradient_of_an_adapter_is_that_of_its_dense_twin(draw):
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=draw)
    conv = nn.Conv2d(3, 4, (3, 2), stride=2, padding=1).double()
    f = zero_core(4, 18, 2, generator=draw, like=x)
    f = f._replace(S=torch.randn(2, 2, dtype=torch.float64, generator=draw))
    layer = LowRankConv2d(f, (3, 2), stride=2, padding=1, base=conv, scale=0.7)
    delta = f.dense().requires_grad_()
    weight = conv.weight + 0.7 * delta.reshape(conv.weight.shape)
    y = nn.functional.conv2d(x, weight, conv.bias, 2, 1)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=1e-13)
    y.square().sum().backward()
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.U.grad, delta.grad @ f.V, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.V.grad, delta.grad.mT @ f.U, rtol=0, atol=1e-12)
    index = torch.tensor([[0, 2, 2], [1, 4, 0]])
    table = nn.Embedding(5, 3, padding_idx=1).double()
    f = zero_core(5, 3, 2, generator=draw, like=x)._replace(S=f.S)
    layer = LowRankEmbedding(f, padding_idx=1, base=table, scale=-0.4)
    delta = f.dense().requires_grad_()
    y = nn.functional.embedding(index, table.weight - 0.4 * delta, padding_idx=1)
    torch.testing.assert_close(layer(index), y, rtol=0, atol=1e-14)
    y.square().sum().backward()
    layer(index).square().sum().backward()
    torch.testing.assert_close(layer.U.grad, delta.grad @ f.V, rtol=0, atol=1e-13)


def test_the_rank_is_that_of_the_product(tmp_path):
    write_lora(llama, tmp_path, target_modules=["q_proj", "v_proj", "k_proj"], r=6)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    for key, t in tensors.items():
        if "q_proj.lora_A" in key:
            t[4:] = 0.0
        elif "v_proj.lora_B" in key:
            t[:, 1] = t[:, 0] + t[:, 2]
        elif "k_proj.lora_B" in key:
            t.zero_()
    save_file(tensors, file)
    model = build(llama)
    load(model, tmp_path)
    ranks = {name.split(".")[-1]: x.rank for name, x in factored_layers(model).items()}
    # A layer of zeros keeps the directions that its A holds, for training to go on.
    assert ranks == {"q_proj": 4, "v_proj": 5, "k_proj": 6}
    assert not any(x.S.any() for n, x in factored_layers(model).items() if "k_proj" in n)


def test_an_untrained_lora_trains_at_the_rank_that_it_has(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = peft.get_peft_model(build(llama), peft.LoraConfig(target_modules=["q_proj"], r=4))
    fresh.save_pretrained(str(tmp_path))
    model = build(llama)
    before = output(model)
    load(model, tmp_path)
    assert torch.equal(output(model), before)
    assert {layer.rank for layer in factored_layers(model).values()} == {4}


def test_an_adapted_model_takes_a_lora_at_its_own_scale(tmp_path):
    expected = write_lora(llama, tmp_path, target_modules=["q_proj"], r=4)
    model = build(llama)
    load(model, tmp_path)
    save(model, tmp_path / "own")
    file = tmp_path / "own" / "adapter.safetensors"
    for layer in factored_layers(model).values():
        layer.scale = 0.25
        layer.set_factors_(layer.factors().scaled(0.0))
    load(model, tmp_path)
    assert (output(model) - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match=r"was saved with scale 1, the model has 0.25"):
        load(model, file)


def test_a_wrapper_takes_the_adapter_of_its_part(tmp_path):
    expected = write_lora(llama, tmp_path, target_modules=["q_proj"])
    wrapped = nn.ModuleDict({"net": build(llama)})
    with pytest.raises(ValueError, match="no linear layer 'model.layers.0.*write `prefix='net'`"):
        load(wrapped, tmp_path)
    load(wrapped, tmp_path, prefix="net")
    assert (output(wrapped["net"]) - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match="holds this one as 'model'. Load into that model"):
        load(build(llama).model, tmp_path)


def edited(folder, config: dict | None = None, tensors=None) -> None:
    """Change what PEFT wrote."""
    if config:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if tensors:
        file = folder / "adapter_model.safetensors"
        save_file(tensors(load_file(file)), file)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
CONFIGS = {
    "DoRA": ({"use_dora": True}, "'use_dora' is True: DoRA rescales.*merge_and_unload"),
    "LoHa": ({"peft_type": "LOHA"}, "'peft_type' is 'LOHA'; rankwise reads.*save_as_lora"),
    "a bias": ({"lora_bias": True}, "'lora_bias' is True: a bias is trained"),
    "biases": ({"bias": "all"}, "'bias' is 'all': biases of adapted layers"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "'pissa', which changes the weights of the base"),
    "a new field": ({"frobnicate": 3}, "'frobnicate' is 3: a field that this rankwise"),
    "parameters": ({"target_parameters": ["x"]}, "adapts parameters that belong to no linear"),
    "no rank": ({"r": 0}, "the rank 'r' must be an int of at least 1, got 0"),
    "a false rank": ({"r": 5}, "of rank 8; .*adapter_config.json says 5"),
    "no alpha": ({"lora_alpha": "big"}, "'lora_alpha' must be a finite number, got 'big'"),
    "a bad pattern": ({"rank_pattern": {"(": 3}}, r"'rank_pattern' has the key '\('"),
    "a slow pattern": ({"rank_pattern": {"(.*a)+b": 3}}, "'rank_pattern' has the key .* for hours"),
    "a row of repetitions": (
        {"alpha_pattern": {".*a" * 20: 3}},
        "alpha_pattern.* for hours",
    ),
    "no float": ({"lora_alpha": 10**400}, "'lora_alpha' must be a finite number"),
    "a huge scale": ({"lora_alpha": 1e308}, "times its scale, 1.25e.307, exceeds float32"),
    "not a number": ({"lora_alpha": float("nan")}, "'lora_alpha' must be a finite number, got nan"),
    "a list": ({"alpha_pattern": [1]}, "'alpha_pattern' must give numbers by names"),
    "a name": ({"modules_to_save": "head"}, "'modules_to_save' must be a list of names"),
}
TENSORS = {
    "NaN": (lambda t: t | {Q.format("A"): t[Q.format("A")] * float("nan")}, "NaN or infinite"),
    "half": (lambda t: {k: v for k, v in t.items() if k != Q.format("B")}, "lacks lora_B"),
    "integers": (lambda t: t | {Q.format("A"): t[Q.format("A")].long()}, "is torch.int64"),
    "8 bits": (
        lambda t: t | {Q.format("A"): t[Q.format("A")].to(torch.float8_e4m3fn)},
        "is torch.float8_e4m3fn, expected 16 bits",
    ),
    "another side": (lambda t: t | {Q.format("B"): torch.zeros(3, 5)}, "do not fit together"),
    "a vector": (lambda t: t | {Q.format("B"): torch.zeros(8)}, "rankwise reads linear maps"),
    "DoRA": (lambda t: t | {Q.format("magnitude_vector"): torch.zeros(3)}, "no part of a plain"),
    "two kinds": (
        lambda t: t | {Q.format("embedding_A").removesuffix(".weight"): torch.zeros(8, 16)},
        "has a lora_A of two kinds",
    ),
    "no prefix": (lambda t: {"x": torch.zeros(3)}, "'x' does not begin with 'base_model.model.'"),
    "nothing": (lambda t: {}, "holds no lora_A and lora_B"),
    "other rows": (lambda t: t | {Q.format("B"): torch.zeros(9, 8)}, r"shape \(9, 16\), the model"),
    "a weight": (
        lambda t: t | {"base_model.model.lm_head.weight": torch.zeros(30, 16)},
        r"holds 'lm_head.weight' \(30, 16\) of the base model that it was trained on",
    ),
    "unknown": (
        lambda t: t | {"base_model.model.score.weight": torch.zeros(2, 16)},
        "'score.weight' .* the model has no such weight",
    ),
}


@pytest.mark.parametrize("case", [*CONFIGS, *TENSORS])
def test_what_is_no_plain_lora_is_refused_and_changes_nothing(tmp_path, case):
    write_lora(llama, tmp_path, target_modules=["q_proj"], r=8)
    if case in CONFIGS:
        edited(tmp_path, config=CONFIGS[case][0])
    if case in TENSORS:
        edited(tmp_path, tensors=TENSORS[case][0])
    error = (CONFIGS.get(case) or TENSORS[case])[1] if case != "DoRA" else "DoRA rescales"
    model = build(llama)
    before = output(model)
    with pytest.raises(ValueError, match=error):
        load(model, tmp_path)
    assert torch.equal(output(model), before) and not factored_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_tied_weight_that_peft_trained_as_a_copy_is_refused(tmp_path):
    write_lora(gpt2, tmp_path, target_modules=["c_attn"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="'lm_head.weight' was trained as a copy.*same"):
        load(build(gpt2), tmp_path)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(16, 16)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_layer_of_two_names_is_refused_for_peft_adapts_only_one(tmp_path):
    x = torch.randn(3, 16, dtype=torch.float64)
    config = peft.LoraConfig(target_modules=["first"], init_lora_weights=False)
    theirs = peft.get_peft_model(build(Twice), config).double()
    assert not isinstance(theirs.base_model.model.second, type(theirs.base_model.model.first))
    theirs.save_pretrained(str(tmp_path))
    model = build(Twice)
    before = model(x)
    with pytest.raises(ValueError, match="PEFT adapts 'first' only, .* 'second' is the same"):
        load(model, tmp_path)
    assert torch.equal(model(x), before)
    model.second = copy.deepcopy(model.first)
    load(model, tmp_path)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-12, atol=1e-12)
    shared = build(Twice)
    adapt_(shared, rank=2)
    with pytest.raises(ValueError, match="is also 'second', and PEFT would adapt the first only"):
        export_lora(shared, tmp_path)


def test_a_model_without_weights_takes_no_adapter(tmp_path):
    write_lora(llama, tmp_path, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="its weight is on the meta device; load the weights"):
        load(build(llama).to("meta"), tmp_path)


def test_files_that_are_not_there_are_told(tmp_path):
    model = build(llama)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(model, tmp_path / "nowhere")
    inner = tmp_path / "run" / "checkpoint-10"
    write_lora(llama, inner, target_modules=["q_proj"])
    with pytest.raises(FileNotFoundError, match="Did you mean '.*checkpoint-10'"):
        load(model, tmp_path / "run")
    load(build(llama), inner / "adapter_model.safetensors")
    load(build(llama), inner / "adapter_config.json")
    (inner / "adapter_config.json").rename(tmp_path / "kept.json")
    with pytest.raises(FileNotFoundError, match="adapter_config.json, which holds its scale"):
        load(model, inner)
    (tmp_path / "kept.json").rename(inner / "adapter_config.json")
    file = inner / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(model, inner)
    file.rename(inner / "adapter_model.bin")
    for path in (inner, inner / "adapter_model.bin"):
        with pytest.raises(ValueError, match="is a pickle, which may run any.*save_pretrained"):
            load(model, path)
    (inner / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*adapter_model.safetensors, beside"):
        load(model, inner)
    (inner / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json is damaged"):
        load(model, inner)


def test_an_adapter_of_another_model_is_told_by_what_the_model_has(tmp_path):
    write_lora(llama, tmp_path, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"nor 1 more of the file.*Its layers are: bert.*base"):
        load(build(bert), tmp_path)


def test_dilated_and_grouped_convolutions_are_refused(tmp_path):
    write_lora(Images, tmp_path, target_modules=["second"])
    for options, error in (
        ({"dilation": 2, "padding": 2}, "is dilated, and PEFT's kernel beside it is not"),
        ({"groups": 2, "padding": 1}, "of 2 groups"),
        ({"padding": 1, "padding_mode": "circular"}, "padding_mode='circular'"),
    ):
        model = build(Images)
        model.second = nn.Conv2d(6, 6, 3, **options).double()
        with pytest.raises(ValueError, match=f"layer 'second' cannot be adapted.*{error}"):
            load(model, tmp_path)
