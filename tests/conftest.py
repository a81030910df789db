"""Shared by all tests: one thread, no network, a generator, a tiny encoder with texts for it."""

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Small products gain nothing from a second thread, and on a busy machine they wait for it.
torch.set_num_threads(1)

GOOD = ("fine", "great", "lovely", "bright")
BAD = ("poor", "awful", "dull", "grim")
PLAIN = ("the", "film", "was", "a", "story", "cast", "and", "its")

settings.register_profile("rankwise", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("rankwise")


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-block BERT and a vocabulary of its own."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def labelled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 rows whose label is told by most words of the text."""
    draw = random.Random(0)
    lines = ["text,label"]
    for i in range(120):
        words = draw.choices(PLAIN, k=2) + draw.choices(GOOD if i % 2 else BAD, k=4)
        draw.shuffle(words)
        lines.append(f"{' '.join(words)},{'good' if i % 2 else 'bad'}")
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
