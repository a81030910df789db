"""The page of the file formats names every file and every key that the commands write."""

import json

import pytest
from safetensors import safe_open

from image_files import write_idx
from pages import DOCS, INLINE, prose
from rankwise.cli.main import main

PAGE = DOCS / "formats.md"
NAMED = set(INLINE.findall(prose(PAGE)))


@pytest.fixture(scope="module")
def folders(tiny_encoder, labelled_file, tmp_path_factory):
    """Runs of `finetune` and `train`, of a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    texts = ["--model", str(tiny_encoder), "--data", str(labelled_file), "--steps", "3"]
    assert main(["finetune", *texts, "--output", str(folder / "finetune")]) == 0
    images = ["--data", str(write_idx(folder / "data")), "--keep", "0.3", "--steps", "4"]
    assert main(["train", *images, "--output", str(folder / "train")]) == 0
    return [folder / "finetune", folder / "train"]


def test_every_file_is_on_the_page(folders):
    for folder in folders:
        for path in folder.iterdir():
            assert (f"{path.name}/" if path.is_dir() else path.name) in NAMED


def test_every_file_and_key_of_a_federation_is_on_the_page(tmp_path):
    arguments = ["--data", str(write_idx(tmp_path / "data")), "--clients", "2", "--rounds", "1"]
    short = ["--local-steps", "1", "--fedavg-steps", "1", "--output", str(tmp_path / "run")]
    assert main(["federate", *arguments, *short]) == 0
    for path in (tmp_path / "run").rglob("*"):
        assert (f"{path.name}/" if path.is_dir() else path.name) in NAMED
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) | set(metrics["results"]["full"]) <= NAMED
    assert set(json.loads((tmp_path / "run" / "clients.json").read_text())) <= NAMED
    line = json.loads((tmp_path / "run" / "full" / "rounds.jsonl").read_text())
    assert set(line) <= NAMED


def test_every_key_of_results_and_history_is_on_the_page(folders):
    finetune, train = folders
    assert set(json.loads((finetune / "metrics.json").read_text())) <= NAMED
    for folder in folders:
        for line in (folder / "history.jsonl").read_text().splitlines():
            assert set(json.loads(line)) <= NAMED


def test_every_key_of_the_metadata_is_on_the_page(folders):
    for name in ("adapter.safetensors", "checkpoints/step-000003.safetensors"):
        with safe_open(folders[0] / name, framework="pt") as file:
            described = json.loads(file.metadata()["rankwise"])
        assert set(described) <= NAMED
        layers = described.get("layers") or described["model"]["layers"]
        assert set(next(iter(layers.values()))) <= NAMED


def test_the_keys_of_the_lora_configuration_are_on_the_page(folders):
    config = json.loads((folders[0] / "lora" / "adapter_config.json").read_text())
    text = PAGE.read_text()
    assert [key for key in config if key not in text] == []
