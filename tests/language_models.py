"""A tiny language model with a tokenizer of its own, and what it can be trained on."""

import json
import random
from pathlib import Path
from typing import Any

import torch

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LAST_ONLY = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Leaves earlier answers out, as templates do with earlier thoughts."""
WORDS = "a b c d e f one two three four five six red green blue white".split()
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|start|>"]


def tokenizer(template: str | None = TEMPLATE, *, opening: bool = False) -> Any:
    """Words and bytes, learned from a few lines; `opening` puts a token before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    if opening:
        core.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", core.token_to_id("<|start|>"))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", bos_token="<|start|>" if opening else None
    )
    made.chat_template = template
    return made


def llama(vocabulary: int = 320, *, seed: int = 0, positions: int = 64) -> Any:
    """Two random blocks of width 16, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=positions,
        initializer_range=0.2, bos_token_id=None, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def saved(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Model and tokenizer as a folder for `from_pretrained`."""
    tokenizer(template).save_pretrained(folder)
    llama().save_pretrained(folder)
    return folder


def turns(*contents: str) -> dict[str, Any]:
    """A conversation in which user and assistant alternate."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


def conversations(rows: int) -> list[dict[str, Any]]:
    """The answer says the question's words backwards."""
    draw = random.Random(0)
    asked = [draw.sample(WORDS, draw.randint(1, 4)) for _ in range(rows)]
    return [turns(" ".join(words), " ".join(reversed(words))) for words in asked]


def json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
