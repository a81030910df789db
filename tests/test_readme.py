"""The README's code runs as it stands there, on a small model."""

from pathlib import Path

import pytest
import torch

from pages import ROOT, blocks, small_model, text_classification

PAGE = ROOT / "README.md"
README = PAGE.read_text()
BEFORE, AFTER, *MORE = [block.text for block in blocks(PAGE) if block.kind == "python"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logits(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_code_comes_before_line_25():
    assert README.splitlines().index("```python") < 25


def test_before_and_after_differ_in_nothing_but_the_adapter():
    loop = [line for line in BEFORE.splitlines() if line.startswith(("for", "    "))]
    assert loop == [line for line in AFTER.splitlines() if line.startswith(("for", "    "))]


# PEFT looks for the base model's configuration on the hub, which tests do not reach.
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
@pytest.mark.filterwarnings("ignore:Unable to fetch remote file:UserWarning")
def test_the_code_before_runs(here):
    exec(BEFORE, text_classification())
    assert (here / "lora" / "adapter_model.safetensors").is_file()


def test_the_code_after_trains_saves_and_exports_what_peft_reads_alike(here):
    from peft import PeftModel

    import rankwise as rw

    space = text_classification()
    plain = logits(space["model"], space["batches"][0])
    exec(AFTER, space)
    trained = logits(space["model"], space["batches"][0])
    assert (trained - plain).norm() > 1e-4 * plain.norm()

    loaded = small_model()
    rw.load(loaded, "run/")
    torch.testing.assert_close(logits(loaded, space["batches"][0]), trained)

    base = small_model()
    base.classifier.load_state_dict(space["model"].classifier.state_dict())
    peft = PeftModel.from_pretrained(base, "lora/")
    torch.testing.assert_close(logits(peft, space["batches"][0]), trained, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", MORE, ids=lambda b: b.splitlines()[0][:40])
def test_the_other_code_runs_after_it(block, here):
    space = text_classification()
    exec(AFTER, space)
    exec(block, space)


def test_a_resumed_run_has_the_progress_that_was_saved(here):
    space = text_classification()
    exec(AFTER, space)
    exec(next(block for block in MORE if "load_training" in block), space)
    assert space["progress"] == {"step": 50}


def test_the_page_is_short():
    assert len(README.splitlines()) <= 120
