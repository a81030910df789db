"""Tiny models and adapters on them, made by PEFT itself."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
TOKENS = torch.arange(24).reshape(2, 12)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).reshape(2, 3, 8, 8).sin()


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, intermediate_size=20)
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(**SIZES, intermediate_size=20, max_position_embeddings=16)
    return transformers.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, n_inner=20
    )
    return transformers.GPT2LMHeadModel(config)


class Images(nn.Module):
    """Convolutions over two dimensions and over one, with stride and padding, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, (3, 2), stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 5, 3, padding="same")
        self.line = nn.Conv1d(5, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.norm(self.first(x)))).flatten(2)
        return self.head(self.line(x).mean(-1))


def build(make) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        if any(isinstance(m, nn.Conv2d) for m in model.modules()):
            return model(IMAGES)
        return model(input_ids=TOKENS).logits


def write_lora(make, folder: Path, **options) -> Tensor:
    """A random LoRA in float64, saved by PEFT; what the model computes with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = peft.AdaLoraConfig if "init_r" in options else peft.LoraConfig
        model = peft.get_peft_model(build(make), kind(**options)).eval()
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    p.copy_(torch.randn(p.shape, generator=draw) / 4)
        model.double().save_pretrained(str(folder), safe_serialization=True)
        return output(model)
