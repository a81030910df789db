"""Plain LoRA, read by PEFT."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rankwise.io.export_lora import export_lora
from rankwise.io.peft_config import TASK_TYPES
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd
from rankwise.surgery.adapt import adapt_
from rankwise.surgery.layers import factored_layers
from rankwise.surgery.merge import merge_

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOKENS = torch.arange(24).reshape(2, 12)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=20,
        vocab_size=30,
        max_position_embeddings=16,
    )
    return transformers.BertModel(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, n_inner=20
    )
    return transformers.GPT2Model(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=20,
        vocab_size=30,
    )
    return transformers.LlamaModel(config)


def build(make) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def fill_(model: nn.Module) -> None:
    """Cores of different ranks, 1 to 4, neither diagonal nor zero, in every layer."""
    draw = torch.Generator().manual_seed(1)
    for i, layer in enumerate(factored_layers(model).values()):
        m, n, rank = layer.out_features, layer.in_features, 1 + i % 4
        f = truncated_svd(torch.randn(m, n, generator=draw), rank)
        turn = torch.linalg.qr(torch.randn(rank, rank, generator=draw)).Q
        layer.set_factors_(Factors(f.U, f.S @ turn, f.V))


def trained(make, scale: float = 0.3) -> nn.Module:
    model = build(make)
    adapt_(model, rank=1, scale=scale)
    fill_(model)
    return model


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).last_hidden_state


@pytest.mark.parametrize("compact", [False, True], ids=["padded", "compact"])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_peft_computes_what_the_adapted_model_computes(tmp_path, make, compact):
    model = trained(make)
    expected = output(model)
    assert (expected - output(build(make))).abs().max() > 0.05
    export_lora(model, tmp_path, compact=compact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)
        loaded = peft.PeftModel.from_pretrained(build(make), str(tmp_path))
    assert (output(loaded) - expected).abs().max() < 1e-5
    merged = loaded.merge_and_unload()
    assert (output(merged) - expected).abs().max() < 1e-5
    merge_(model)
    assert (output(merged) - output(model)).abs().max() < 1e-5


@pytest.mark.parametrize("compact", [False, True], ids=["padded", "compact"])
def test_transformers_loads_the_export_by_itself(tmp_path, compact):
    model = trained(llama)
    export_lora(model, tmp_path, compact=compact)
    loaded = build(llama)
    loaded.load_adapter(str(tmp_path))
    assert (output(loaded) - output(model)).abs().max() < 1e-5


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = build(bert)
        self.head = nn.Linear(16, 2)


@pytest.mark.parametrize("prefix", ["encoder", "encoder."])
def test_the_prefix_of_a_wrapper_is_stripped(tmp_path, prefix):
    model = Classifier()
    adapt_(model, select="encoder.*", train="head")
    fill_(model)
    export = export_lora(model, tmp_path, prefix=prefix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = peft.PeftModel.from_pretrained(build(bert), str(tmp_path))
    assert (output(loaded) - output(model.encoder)).abs().max() < 1e-5
    assert export.dense == ("head.weight", "head.bias")
    assert "trained, but not LoRA and not exported: head.weight, head.bias" in str(export)


def test_a_layer_outside_the_prefix_is_an_error(tmp_path):
    model = Classifier()
    adapt_(model)
    fill_(model)
    with pytest.raises(ValueError, match="layer 'head' is not inside the part .* 'encoder'"):
        export_lora(model, tmp_path, prefix="encoder")
    assert not list(tmp_path.iterdir())


def small(*ranks: int, scale: float = 2.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in ranks))
    adapt_(model, scale=scale)
    for layer, rank in zip(model, ranks, strict=True):
        layer.set_factors_(truncated_svd(torch.randn(6, 6), rank))
    return model


def test_the_padded_layout_has_one_rank_and_a_scale_of_one(tmp_path):
    model = small(1, 4, 2)
    export = export_lora(model, tmp_path, base_model_name="some/model", task_type="SEQ_CLS")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["target_modules"] == ["0", "1", "2"]
    assert config["base_model_name_or_path"] == "some/model"
    assert config["task_type"] == "SEQ_CLS"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for i, layer in enumerate(model):
        A = tensors[f"base_model.model.{i}.lora_A.weight"]
        B = tensors[f"base_model.model.{i}.lora_B.weight"]
        assert A.shape == (4, 6) and B.shape == (6, 4)
        assert torch.allclose(B @ A, 2.0 * layer.factors().dense(), atol=1e-5)
    assert (export.padded_parameters, export.compact_parameters) == (3 * 4 * 12, 7 * 12)
    assert "144 padded, 84 compact (1.71x)" in str(export)


def test_the_compact_layout_has_exact_ranks_with_alpha_equal_to_rank(tmp_path):
    export = export_lora(small(1, 4, 2), tmp_path, compact=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {"0": 1, "1": 4, "2": 2}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.2.lora_A.weight"].shape == (2, 6)
    assert "llama.cpp" not in str(export)
    assert "PEFT" in str(export)


def test_equal_ranks_need_no_patterns_and_suit_every_reader(tmp_path):
    export = export_lora(small(2, 2), tmp_path, compact=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {}
    assert {"llama.cpp", "diffusers"} <= set(export.consumers)
    assert "vLLM (--max-lora-rank 2 or more)" in export.consumers


class Nested(nn.Module):
    """`q` and `sub.q`: the first name is an end of the second; `sub.k` is not adapted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.sub = nn.ModuleDict({"q": nn.Linear(4, 4), "k": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sub["k"](self.k(self.sub["q"](self.q(x))))


@pytest.mark.parametrize("compact", [False, True], ids=["padded", "compact"])
def test_a_name_that_ends_like_another_is_not_confused_with_it(tmp_path, compact):
    model = Nested()
    adapt_(model, exclude="sub.k")
    for rank, layer in enumerate(factored_layers(model).values(), start=1):
        layer.set_factors_(truncated_svd(torch.randn(4, 4), rank))
    export_lora(model, tmp_path, compact=compact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(Nested(), str(tmp_path))
    x = torch.randn(3, 4)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)


def test_a_mix_of_linear_and_conv1d_is_read_rightly(tmp_path):
    def mixed() -> nn.Module:
        torch.manual_seed(0)
        conv1d = transformers.pytorch_utils.Conv1D
        return nn.Sequential(nn.Linear(4, 6), conv1d(5, 6), nn.Linear(5, 4), conv1d(4, 4))

    model = mixed()
    adapt_(model)
    fill_(model)
    export_lora(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(mixed(), str(tmp_path))
    x = torch.randn(3, 4)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)
    assert torch.allclose(loaded.merge_and_unload()(x), model(x), atol=1e-5)


def test_max_rank_cuts_by_svd_and_tells_the_error(tmp_path):
    model = small(1, 4, 2)
    export = export_lora(model, tmp_path, max_rank=2)
    assert export.ranks == {"0": 1, "1": 2, "2": 2}
    assert set(export.errors) == {"1"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    got = tensors["base_model.model.1.lora_B.weight"] @ tensors["base_model.model.1.lora_A.weight"]
    exact = 2.0 * model[1].factors().dense()
    relative = float((got - exact).norm() / exact.norm())
    sigma = torch.linalg.svdvals(exact)
    assert relative == pytest.approx(float(sigma[2:].norm() / sigma.norm()), rel=1e-4)
    assert export.errors["1"] == pytest.approx(relative, rel=1e-4)
    assert "cut to max_rank: 1 layers, largest relative error" in str(export)
    assert model[1].rank == 4


def test_layers_with_a_zero_core_are_left_out(tmp_path):
    model = small(2, 2)
    with torch.no_grad():
        model[0].S.zero_()
    export = export_lora(model, tmp_path)
    assert export.zero == ("0",)
    assert "left out, zero: 0" in str(export)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["1"]
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2


def test_there_must_be_something_to_export(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no low-rank layer to export"):
        export_lora(model, tmp_path)
    adapt_(model)
    with pytest.raises(ValueError, match="every layer has a zero core"):
        export_lora(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_rank", [0, -1])
def test_a_maximal_rank_below_one_is_an_error(tmp_path, max_rank):
    with pytest.raises(ValueError, match="`max_rank` must be at least 1"):
        export_lora(small(2), tmp_path, max_rank=max_rank)


def test_a_task_that_peft_does_not_know_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="`task_type` must be one of SEQ_CLS, .*got 'SEQCLS'"):
        export_lora(small(2), tmp_path / "lora", task_type="SEQCLS")
    assert not (tmp_path / "lora").exists()


def test_the_tasks_are_those_of_peft():
    assert set(TASK_TYPES) == {task.value for task in peft.TaskType}


def test_exporting_changes_nothing(tmp_path):
    model = small(1, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_lora(model, tmp_path, max_rank=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
