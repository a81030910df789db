"""Adapters that PEFT made, in a model of rankwise's."""

import pytest
import torch

from peft_models import Images, bert, build, gpt2, llama, output, write_lora
from rankwise.io.checkpoint import load
from rankwise.surgery.layers import factored_layers

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
