"""Every block of Python on every page runs, in order, in an empty folder, without a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from image_files import write_idx
from pages import DOCS, blocks, run, small_model, text_classification
from rankwise.cli.main import main

PYTHON = {page.name: found for page in sorted(DOCS.glob("*.md"))
          if (found := [b for b in blocks(page) if b.kind == "python"])}  # fmt: skip


def nothing(fixture: Callable[[str], Any]) -> dict[str, Any]:
    return {}


def classification(fixture: Callable[[str], Any]) -> dict[str, Any]:
    return text_classification()


def fine_tuned(fixture: Callable[[str], Any]) -> dict[str, Any]:
    """A model and batches, and a run of the command in `runs/reviews`."""
    encoder, data = fixture("tiny_encoder"), fixture("labelled_file")
    arguments = ["finetune", "--model", str(encoder), "--data", str(data), "--steps", "2"]
    assert main([*arguments, "--output", "runs/reviews"]) == 0
    return {**text_classification(), "pretrained": small_model, "encoder": encoder}


def saved_adapter(fixture: Callable[[str], Any]) -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    rw.adapt_(net, rank=2, select="0", train="1")
    rw.save(net, "run/")
    return {}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 40), nn.ReLU(), nn.Linear(40, 3))


def image_run(fixture: Callable[[str], Any]) -> dict[str, Any]:
    """A run of the command in `runs/train`, and the function that makes its network."""
    write_idx(Path("data"))
    Path("network_of_this_page.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(144, 40), nn.ReLU(), nn.Linear(40, 3))\n"
    )
    arguments = ["train", "--data", "data", "--model", "network_of_this_page:build"]
    assert main([*arguments, "--keep", "0.3", "--steps", "4", "--no-dense"]) == 0
    return {"build": network}


def trained_network(fixture: Callable[[str], Any]) -> dict[str, Any]:
    """A dense model, batches of inputs, and the loss of labels that it draws itself."""
    torch.manual_seed(0)
    model = network().eval()

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return rw.compress.sampled_cross_entropy(model(batch))

    batches = list(torch.randn(4, 32, 144))
    return {"model": model, "batches": batches, "loss": loss, "example": batches[0]}


def attacked_network(fixture: Callable[[str], Any]) -> dict[str, Any]:
    """A low-rank network of scaled images, and pixels in [0, 1] with labels."""
    torch.manual_seed(0)
    net = network()
    rw.factorize_(net, rank=4, init=rw.init.Random())
    x, y = torch.rand(12, 1, 12, 12), torch.arange(12) % 3
    return {"net": net, "x": x, "y": y, "batches": [(x, y)], "loss": nn.CrossEntropyLoss()}


SURROUNDINGS = {
    "index.md": classification,
    "finetune.md": fine_tuned,
    "formats.md": saved_adapter,
    "train.md": image_run,
    "compress.md": trained_network,
    "robust.md": attacked_network,
}
"""What a page takes for granted; of the others, nothing."""


@pytest.mark.parametrize("name", PYTHON)
def test_the_code_of_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    space = SURROUNDINGS.get(name, nothing)(request.getfixturevalue)
    for block in PYTHON[name]:
        run(block, space)


def test_every_surrounding_belongs_to_a_page_with_code():
    assert set(SURROUNDINGS) <= set(PYTHON)


def test_no_code_hides_under_another_name():
    kinds = {block.kind for page in DOCS.rglob("*.md") for block in blocks(page)}
    ours = {"{toctree}", "{eval-rst}", "math"}
    assert {k for k in kinds if not k.startswith("{command}")} <= {"", "python", *ours}
