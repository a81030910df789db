"""Runs and adapters examined: each disease is made, and found by its name alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rankwise as rw
from image_files import write_idx
from networks import adapter, thin_layers, train
from rankwise.check import Verdict
from rankwise.io.training import save_training
from rankwise.optim.rank_rule import RankRule
from rankwise.recipes.doctor import DoctorOptions, doctor
from rankwise.recipes.finetune import finetune
from rankwise.recipes.history import Watcher
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.run_findings import findings_of
from rankwise.recipes.run_folder import read_lines
from rankwise.recipes.train import train_classifier
from rankwise.recipes.train_options import TrainOptions
from rankwise.report import Recorder

NEWEST = "checkpoints/step-000060.safetensors"
SILENT = Watcher(say=lambda message: None, step=lambda line: None)


@pytest.fixture(scope="module")
def finished(tiny_encoder, labelled_file, tmp_path_factory) -> Path:
    """A healthy run of `rankwise finetune`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = FinetuneOptions(
        model=str(tiny_encoder), data=str(labelled_file), rank=4, steps=60, batch_size=8,
        head_lr=3e-2, lr=1e-2, output=folder,
    )  # fmt: skip
    finetune(options, SILENT)
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it to make ill; without its sums, by which every change is one."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "SHA256SUMS").unlink()
    return folder


def sick(path: Path, base: str | None = None) -> dict[str, Verdict]:
    return {f.name: f.verdict for f in findings_of(path, base) if f.verdict is not Verdict.OK}


def names(path: Path) -> set[str]:
    return {f.name for f in findings_of(path)}


def edited(path: Path, **changes) -> None:
    """A JSON file with other entries."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edited_lines(run: Path, change) -> None:
    lines = [json.loads(text) for text in (run / "history.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        change(i, line)
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def edited_tensors(path: Path, change) -> None:
    """A file with other tensors, of which its checksum knows nothing."""
    with safe_open(path, framework="pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "checksum"}
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def test_a_healthy_fine_tuning_has_no_flaw(finished, tiny_encoder):
    assert sick(finished) == {}
    assert sick(finished, str(tiny_encoder)) == {}
    assert names(finished) == {
        "files", "checksums", "complete run", "finite loss", "falling loss", "learning rate",
        "stationarity", "skipped steps", "rank changes", "finite factors", "orthonormal bases",
        "trained layers", "movement", "rank bounds", "export",
    }  # fmt: skip


def test_its_parts_have_none_either(finished, tiny_encoder):
    assert sick(finished / "adapter.safetensors", str(tiny_encoder)) == {}
    assert sick(finished / NEWEST) == {}
    assert sick(finished / "history.jsonl") == {}
    assert sick(finished / "lora", str(tiny_encoder)) == {}


def test_a_healthy_training_from_scratch_has_no_flaw(tmp_path):
    options = TrainOptions(
        data=str(write_idx(tmp_path / "data")), model="mlp", keep=0.3, steps=80, batch_size=20,
        output=tmp_path / "run",
    )  # fmt: skip
    train_classifier(options, SILENT)
    assert sick(tmp_path / "run") == {}


@pytest.mark.parametrize("name", ["adapter", "head", NEWEST.removesuffix(".safetensors")])
def test_a_cut_off_file_is_named(run, name):
    file = run / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    flaws = sick(run)
    assert flaws["files"] is Verdict.FAULT
    # Without its file, the head is also missing beside the export.
    assert set(flaws) - {"files"} == ({"export"} if name == "head" else set())
    assert str(file) in findings_of(run)[0].seen


@pytest.mark.parametrize("name", ["options.json", "metrics.json"])
def test_a_broken_object_is_named(run, name):
    (run / name).write_text("{half")
    assert sick(run)["files"] is Verdict.FAULT
    assert name in findings_of(run)[0].seen


def test_a_broken_line_is_damage_and_a_cut_off_last_one_is_not(run):
    file = run / "history.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert sick(run) == {}
    lines = whole.splitlines()
    lines[40] = lines[40][:-9]
    file.write_text("\n".join(lines) + "\n")
    assert sick(run) == {"files": Verdict.FAULT}
    assert "line 41" in findings_of(run)[0].seen
    assert len(read_lines(file)[0]) == 40


def test_an_incomplete_run_is_told_how_to_go_on(run):
    (run / "metrics.json").unlink()
    assert sick(run) == {"complete run": Verdict.WARNING}
    found = findings_of(run)[1]
    assert "60 steps of 60" in found.seen
    assert found.mend == f"rankwise finetune --resume --output {run}"
    # As an earlier rankwise has left it.
    (run / NEWEST).rename(run / "checkpoint.safetensors")
    shutil.rmtree(run / "checkpoints")
    assert findings_of(run)[1].mend == f"rankwise finetune --resume --output {run}"
    (run / "checkpoint.safetensors").unlink()
    told = "it has no checkpoint: start rankwise finetune anew, with --overwrite"
    assert findings_of(run)[1].mend == told
    # One of several contenders has one.
    (run / "full").mkdir()
    (run / "full" / "server.safetensors").write_bytes(b"")
    assert findings_of(run)[1].mend == f"rankwise finetune --resume --output {run}"


def test_the_doctor_does_not_write_over_the_results_of_a_run(run):
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run, whose metrics.json would be replaced"):
        doctor(DoctorOptions(subject=run, output=run))
    assert (run / "metrics.json").read_bytes() == before


def test_a_loss_that_does_not_fall_or_is_not_finite(run):
    edited_lines(run, lambda i, line: line.update(loss=0.7 + 0.01 * (-1) ** i))
    assert sick(run) == {"falling loss": Verdict.WARNING}
    edited_lines(run, lambda i, line: line.update(loss=float("nan") if i > 9 else line["loss"]))
    assert sick(run)["finite loss"] is Verdict.FAULT


def test_a_rate_of_zero_trains_nothing(tiny_encoder, labelled_file, tmp_path):
    options = FinetuneOptions(
        model=str(tiny_encoder), data=str(labelled_file), rank=2, steps=40, batch_size=8, lr=0.0,
        head_lr=3e-2, fixed_rank=True, output=tmp_path / "run",
    )  # fmt: skip
    finetune(options, SILENT)
    assert sick(tmp_path / "run") == {
        "learning rate": Verdict.FAULT,
        "trained layers": Verdict.FAULT,
    }
    slow = dataclasses.replace(options, lr=1e-7, output=tmp_path / "slow")
    finetune(slow, SILENT)
    assert sick(tmp_path / "slow") == {
        "learning rate": Verdict.WARNING,
        "movement": Verdict.WARNING,
    }


def test_skipped_steps_are_read_from_the_metrics(run):
    edited(run / "metrics.json", skipped_steps=30)
    assert sick(run) == {"skipped steps": Verdict.FAULT}


def test_ranks_that_never_changed(run):
    edited_lines(run, lambda i, line: (line.update(mean_rank=4.0), line.pop("ranks", None)))
    edited(run / "metrics.json", rank_rule=repr(rw.Tolerance(every=100)))
    assert sick(run) == {"rank changes": Verdict.WARNING}
    edited(run / "metrics.json", rank_rule=repr(rw.FixedRank()))
    assert sick(run) == {}


def test_ranks_above_the_budget(run):
    edited(run / "metrics.json", rank_rule=repr(rw.Budget(parameters=20)))
    assert sick(run) == {"rank bounds": Verdict.WARNING}


def test_a_gradient_that_grows(run):
    edited_lines(run, lambda i, line: line.update(gradient_norm=1.1**i))
    assert sick(run) == {"stationarity": Verdict.WARNING}


def zeroed(tensors: dict, most: int) -> None:
    for key in [k for k in tensors if k.endswith(".S")][:most]:
        tensors[key].zero_()


def test_adapters_that_were_never_trained(run):
    file = run / "adapter.safetensors"
    edited_tensors(file, lambda t: zeroed(t, 1))
    assert sick(run) == {"trained layers": Verdict.WARNING}
    edited_tensors(file, lambda t: zeroed(t, 99))
    assert sick(run) == {"trained layers": Verdict.FAULT}


def scaled(tensors: dict, end: str, factor: float) -> None:
    for key in tensors:
        if key.endswith(end):
            tensors[key].mul_(factor)


def test_adapters_that_hardly_moved(run, tiny_encoder):
    file = run / "adapter.safetensors"
    edited_tensors(file, lambda t: scaled(t, ".S", 1e-6))
    assert sick(run) == {"movement": Verdict.WARNING}
    assert sick(run, str(tiny_encoder)) == {"movement": Verdict.WARNING}


def test_factors_that_are_not_what_they_should_be(run):
    file = run / "adapter.safetensors"
    edited_tensors(file, lambda t: scaled(t, "query.U", 1.1))
    assert sick(run) == {"orthonormal bases": Verdict.FAULT}
    edited_tensors(file, lambda t: scaled(t, "query.U", float("nan")))
    assert sick(run) == {"finite factors": Verdict.FAULT}


def test_an_export_that_lacks_a_layer_or_the_head(run):
    lora = run / "lora" / "adapter_model.safetensors"
    edited_tensors(lora, lambda t: [t.pop(k) for k in list(t) if "layer.0.attention.self.q" in k])
    assert sick(run) == {"export": Verdict.FAULT}
    shutil.copy(run / "head.safetensors", run / "lora")
    (run / "head.safetensors").unlink()
    assert sick(run) == {"export": Verdict.FAULT}


def test_a_head_that_is_nowhere_beside_the_export(run):
    (run / "head.safetensors").unlink()
    assert sick(run) == {"export": Verdict.WARNING}
    found = findings_of(run)[-1]
    assert "head.bias, head.weight" in found.seen


def test_another_base_is_a_fault_and_a_rounded_one_a_warning(finished, tiny_encoder, tmp_path):
    weights = load_file(tiny_encoder / "model.safetensors")
    for name, change in {
        "other": lambda t: t + 0.01 * torch.randn_like(t),
        "rounded": lambda t: t.bfloat16() if t.is_floating_point() else t,
    }.items():
        (tmp_path / name).mkdir()
        changed = {k: change(t) for k, t in weights.items()}
        save_file(changed, tmp_path / name / "model.safetensors")
    assert sick(finished, str(tmp_path / "other")) == {"base": Verdict.FAULT}
    assert sick(finished, str(tmp_path / "rounded" / "model.safetensors")) == {
        "base": Verdict.WARNING
    }
    (tmp_path / "part").mkdir()
    part = {k: t for k, t in weights.items() if "layer.1." not in k}
    save_file(part, tmp_path / "part" / "model.safetensors")
    assert sick(finished, str(tmp_path / "part")) == {"base": Verdict.FAULT}


def test_a_base_that_is_nowhere_is_refused(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="--base nobody/nothing is no folder, and no model"):
        findings_of(finished, "nobody/nothing")
    with pytest.raises(FileNotFoundError, match=r"has no \.safetensors file"):
        findings_of(finished, str(tmp_path))
    with pytest.raises(ValueError, match="name the adapter or run as well"):
        doctor(DoctorOptions(base="anything"))


def test_what_is_no_run_is_refused(tmp_path, finished):
    with pytest.raises(FileNotFoundError, match="there is no"):
        findings_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a run nor an adapter$"):
        findings_of(tmp_path)
    with pytest.raises(ValueError, match="examine one of run in it"):
        findings_of(finished.parent)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_folder_of_pefts(tiny_encoder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_encoder)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"]))
    model.save_pretrained(tmp_path / "fresh")
    assert sick(tmp_path / "fresh") == {"trained layers": Verdict.FAULT}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.01)
    model.save_pretrained(tmp_path / "trained")
    assert sick(tmp_path / "trained", str(tiny_encoder)) == {}
    file = tmp_path / "trained" / "adapter_model.safetensors"
    edited_tensors(file, lambda t: scaled(t, "lora_B.weight", 1e-5))
    assert sick(tmp_path / "trained") == {}
    assert sick(tmp_path / "trained", str(tiny_encoder)) == {"movement": Verdict.WARNING}
    edited_tensors(file, lambda t: scaled(t, "lora_A.weight", float("inf")))
    assert sick(tmp_path / "trained") == {"finite factors": Verdict.FAULT}
    edited_tensors(file, lambda t: t.pop(next(k for k in t if "lora_B" in k)))
    assert sick(tmp_path / "trained") == {"files": Verdict.FAULT}
    edited(tmp_path / "trained" / "adapter_config.json", peft_type="IA3")
    assert "'IA3', not LORA" in findings_of(tmp_path / "trained")[0].seen


def test_a_loop_of_ones_own_with_a_layer_that_is_not_attached(tmp_path):
    model = thin_layers()
    model.extra = adapter()
    model.forward = lambda x: model[:5](x)
    optimizer = rw.Optimizer(model, lr=0.05, max_step=0.05, rank_rule=rw.Tolerance(every=5))
    losses = train(model, optimizer, 0, 100)
    lines = [json.dumps({"step": i + 1, "loss": loss}) + "\n" for i, loss in enumerate(losses)]
    (tmp_path / "history.jsonl").write_text("".join(lines))
    rw.save(model, tmp_path)
    assert sick(tmp_path) == {"trained layers": Verdict.WARNING}
    save_training(tmp_path / "state.safetensors", model=model, optimizer=optimizer, progress={})
    assert sick(tmp_path / "state.safetensors") == {"trained layers": Verdict.WARNING}


def recorded(folder: Path, steps: int, rank_rule: RankRule) -> Recorder:
    model = thin_layers()
    optimizer = rw.Optimizer(model, lr=0.05, max_step=0.05, rank_rule=rank_rule)
    recorder = Recorder(folder, optimizer)
    for i in range(steps):
        (loss,) = train(model, optimizer, i, i + 1)
        recorder.step(loss)
    rw.save(model, folder)
    return recorder


def test_a_recorded_loop_is_healthy_and_incomplete_until_it_is_finished(tmp_path):
    recorder = recorded(tmp_path, 100, rw.Tolerance(rtol=0.1, every=5))
    assert sick(tmp_path) == {"complete run": Verdict.WARNING}
    assert {"rank changes", "stationarity", "movement"} <= names(tmp_path)
    recorder.finish()
    assert sick(tmp_path) == {}


def test_a_recorded_loop_shorter_than_a_cycle_tells_why_ranks_stay(tmp_path):
    recorded(tmp_path, 100, rw.Tolerance(every=200, grow=0)).finish()
    assert sick(tmp_path) == {"rank changes": Verdict.WARNING}
    (found,) = (f for f in findings_of(tmp_path) if f.mend)
    assert "shorter than a cycle of the rule, 200 steps" in found.seen


def test_metrics_hold_all_findings(finished, tmp_path):
    found = doctor(DoctorOptions(subject=finished, output=tmp_path / "out", seed=3))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["verdict"] == "ok" and metrics["seed"] == 3
    assert [f["name"] for f in metrics["findings"]] == [f.name for f in found]
    assert set(metrics["findings"][0]) == {"name", "verdict", "seen", "mend"}
    assert metrics["options"]["subject"] == str(finished)
