"""The command line: what is printed, and with which status it ends."""

import functools
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from image_files import write_idx
from rankwise.cli.main import call, commands, main
from rankwise.recipes.attack_options import AttackOptions
from rankwise.recipes.compress_options import CompressOptions
from rankwise.recipes.federate_options import FederateOptions
from rankwise.recipes.folder import begin
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.train_options import TrainOptions


def test_a_fine_tuning_prints_its_results_and_where_they_are(
    tiny_encoder, labelled_file, tmp_path, capsys
):
    output = tmp_path / "run"
    arguments = ["finetune", "--model", str(tiny_encoder), "--data", str(labelled_file)]
    assert main([*arguments, "--steps", "3", "--rank", "2", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for word in ("held-out accuracy", "adapter parameters", "mean rank", "PEFT", "llama.cpp"):
        assert word in printed
    assert json.loads((output / "metrics.json").read_text())["options"]["steps"] == 3


def test_an_error_of_the_user_is_one_line_and_status_2(tmp_path, capsys):
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,1\n")
    assert main(["finetune", "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("rankwise: error:") and len(error.splitlines()) == 1
    assert "all 1 rows have the label '1'" in error


def test_a_bad_value_leaves_no_folder_behind(tmp_path, capsys):
    assert main(["finetune", "--lr", "-1", "--output", str(tmp_path / "run")]) == 2
    assert "--lr must be finite and not negative, got -1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_is_refused_with_a_near_one(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--stpes", "3"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "--steps" in printed.out + printed.err


def test_a_plan_names_layers_and_reasons(tiny_encoder, capsys):
    assert main(["plan", "--model", str(tiny_encoder), "--rank", "4"]) == 0
    printed = capsys.readouterr().out
    assert "attention.self.query" in printed and "not selected" in printed
    assert "adapted: 12 layers" in printed


def test_a_plan_of_a_batch_predicts_a_step(tiny_encoder, capsys):
    arguments = ["plan", "--model", str(tiny_encoder), "--batch-size", "2"]
    assert main([*arguments, "--max-length", "8"]) == 0
    printed = capsys.readouterr().out
    for words in ("frozen", "low rank", "LoRA", "full", "peak MiB", "over the frozen model"):
        assert words in printed
    assert main([*arguments, "--max-length", "33"]) == 2
    assert "--max-length must be at least 1 and, of this model, at most 32" in (
        capsys.readouterr().err
    )


NETWORK = """
from torch import nn
def build(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(size ** 2, 40), nn.ReLU(), nn.Linear(40, classes))
"""


def test_a_training_of_an_own_network_prints_both_beside_each_other(tmp_path, capsys, monkeypatch):
    (tmp_path / "network_of_mine.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--data", str(write_idx(tmp_path / "data")), "--keep", "0.3"]
    arguments += ["--model", "network_of_mine:build", "--steps", "20", "--batch-size", "20"]
    assert main([*arguments, "--output", "out"]) == 0
    printed = capsys.readouterr().out
    for words in ("dense", "low rank", "test accuracy, %", "parameters removed; ranks", "run.png"):
        assert words in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["dense"]["parameters"] == 144 * 40 + 40 + 40 * 3 + 3
    assert set(metrics["ranks"]) == {"1"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere"], "--data nowhere is no folder"),
        (["--data", "."], "holds neither idx files"),
        (["--model", "a.b"], "must be one of mlp, lenet, cnn, vgg, mobile, vit or an import path"),
        (["--keep", "0.1", "--tolerance", "0.1"], "--keep and --tolerance are different rank"),
    ],
)
def test_a_training_that_cannot_work_is_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "data")
    assert main(["train", "--data", "data", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("rankwise: error:") and len(error.splitlines()) == 1
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_a_federation_prints_its_contenders_beside_each_other(tmp_path, capsys, monkeypatch):
    (tmp_path / "network_of_many.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    arguments = ["federate", "--data", str(write_idx(tmp_path / "data")), "--clients", "3"]
    arguments += ["--model", "network_of_many:build", "--rank", "3", "--rounds", "3"]
    arguments += ["--compare", "fedavg", "none", "--batch-size", "8", "--lr", "1e30"]
    assert main([*arguments, "--output", "out"]) == 0
    printed = capsys.readouterr().out
    for words in ("FeDLRT, full", "FeDLRT, uncorrected", "FedAvg", "of the bytes of FedAvg, %"):
        assert words in printed
    for words in (
        "round 1  accuracy",
        "ranks 3  void: no sound answer",
        "federate.png",
        "round 2: client-1",
    ):
        assert words in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["results"]) == ["full", "fedavg", "none"]


ATTACKED = """
from torch import nn
def one(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(size ** 2, classes))
two = one
"""


def test_subjects_to_attack_need_no_name_of_an_option(tmp_path, capsys, monkeypatch):
    (tmp_path / "attacked_networks.py").write_text(ATTACKED)
    monkeypatch.chdir(tmp_path)
    arguments = ["attack", "attacked_networks:one", "attacked_networks:two", "--attacks", "fgsm"]
    arguments += ["--data", str(write_idx(tmp_path / "data")), "--eps", "0.01", "0.02"]
    assert main([*arguments, "--output", "out"]) == 0
    printed = capsys.readouterr().out
    for words in ("one", "two", "FGSM, eps 0.02", "certified, l2 eps 1", "attack.png"):
        assert words in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["options"]["subjects"] == ["attacked_networks:one", "attacked_networks:two"]
    assert metrics["options"]["eps"] == [0.01, 0.02]
    assert main([*arguments, "--output", "b", "--surrogate", "three"]) == 2
    assert "--surrogate must be one of 'one', 'two', got 'three'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_the_help_of_an_attack_says_what_it_does_without_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["attack", "--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "positional arguments" in printed and "--subjects" not in printed
    assert "Without options" in printed


def test_a_doctor_tells_flaws_with_their_mend_and_ends_with_status_1_for_faults(tmp_path, capsys):
    lines = [json.dumps({"step": i, "loss": 1.0 - 0.01 * i, "lr": 0.01}) for i in range(1, 31)]
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["doctor", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "falling loss" in printed and "all is well" in printed
    lines[4] = json.dumps({"step": 5, "loss": float("nan"), "lr": 0.01})
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["doctor", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "first in step 5" in printed and "-> lower the learning rate" in printed
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["verdict"] == "fault"


def test_a_doctor_without_a_subject_examines_the_installation(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    assert main(["doctor", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch", "extra finetune", "lapack", "descent", "resume"):
        assert word in printed


def test_a_doctor_of_nothing_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("rankwise: error: there is no")


def test_a_command_that_there_is_not_has_a_near_one(capsys):
    assert main(["finetun"]) == 2
    assert capsys.readouterr().err == (
        "rankwise: error: there is no command 'finetun'; did you mean finetune?\n"
    )


def test_the_version_and_the_help_without_arguments(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rankwise ")
    with pytest.raises(SystemExit) as stop:
        main([])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert printed.index("finetune ") < printed.index("study ")


def test_an_option_without_a_value_is_none_of_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    printed = capsys.readouterr().out
    assert "{None}" not in printed and "--steps INT" in printed


def test_a_file_in_the_way_of_a_folder_is_told_without_a_number(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["study", "--steps", "2", "--output", str(tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err
    assert "[Errno" not in error and str(tmp_path / "file") in error


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_too(tiny_encoder, labelled_file, tmp_path, capsys):
    output = tmp_path / "run"
    job = ["finetune", "--data", str(labelled_file), "--model", str(tiny_encoder)]
    job += ["--steps", "4", "--save-every", "2", "--rank", "2", "--output", str(output)]
    assert main(job) == 0
    (output / "metrics.json").unlink()
    newest = output / "checkpoints" / "step-000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["finetune", "--resume", "--output", str(output)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 1 and told[0].startswith(f"rankwise: warning: {newest} is damaged")


JOBS = {
    "finetune": FinetuneOptions(lr=0.5, select=("query",), fixed_rank=True, pack=False),
    "train": TrainOptions(lr=0.5, dense=False, epochs=3),
    "compress": CompressOptions(lr=0.5, select=("0", "1"), weights=Path("w.safetensors")),
    "attack": AttackOptions(rows=7, attacks=("fgsm", "pgd")),
    "federate": FederateOptions(lr=0.5, compare=("fedavg",)),
}


def typed(options) -> list[str]:
    """All that differs from the defaults, as a user would type it."""
    words = []
    for f in fields(options):
        value, name = getattr(options, f.name), f.name.replace("_", "-")
        if value != getattr(type(options)(), f.name) and f.name != "output":
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


@pytest.mark.parametrize("name", JOBS)
def test_going_on_takes_the_same_command_again_and_nothing_else(name, tmp_path):
    taken = []

    @functools.wraps(commands()[name])
    def take(*given, **named):
        taken.extend((*given, *named.values()))

    began = replace(JOBS[name], output=tmp_path)
    begin(began, ())
    again = [name, "--resume", "--output", str(tmp_path)]
    option = "rows" if name == "attack" else "lr"
    was, usual = getattr(began, option), getattr(type(began)(), option)
    # At its default it was another.
    told = rf"a resumed run keeps its options; leave out --{option} \(it was {was}\)$"
    with pytest.raises(ValueError, match=told):
        call({name: take}, [*again, f"--{option}={usual}"])
    with pytest.raises(ValueError, match=r"leave out --data \(it was"):
        call({name: take}, [*again, *typed(began), "--data", "nowhere"])
    assert taken == []
    # The same as in the beginning, and what a run takes anew, are fine.
    call({name: take}, [*again, *typed(began), "--save-every", "7"])
    assert [options.save_every for options in taken if is_dataclass(options)] == [7]
