"""Shared by all tests: one thread, no network, and a seeded generator."""

import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Small products gain nothing from a second thread, and on a busy machine they wait for it.
torch.set_num_threads(1)

settings.register_profile("rankwise", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("rankwise")


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)
