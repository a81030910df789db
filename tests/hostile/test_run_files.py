"""Files of a run that say what no run writes: refused with file, line and field."""

import json

import pytest

from rankwise.report.page.run import read_runs
from rankwise.report.page.write import page_of
from recorded_runs import history, write_run


def changed(tmp_path, name: str, **entries):
    run = write_run(
        tmp_path / "run",
        lines=history(steps=5, ranks=lambda step: [4, 3], details=2),
        names=["a", "b"],
    )
    file = run / name
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[2] |= entries
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return run


LAYER = {"name": "a", "shape": [4, 4], "kernel": None, "full": [4]}


@pytest.mark.parametrize(
    "name, entries, message",
    [
        ("history.jsonl", {"step": "3"}, "line 3 is damaged: 'step' must be a whole number"),
        ("history.jsonl", {"step": 1}, "line 3 is damaged: 'step' must be larger"),
        ("history.jsonl", {"loss": "low"}, "line 3 is damaged: 'loss' must be a number or null"),
        ("history.jsonl", {"loss": 10**400}, "line 3 is damaged: 'loss' must be a number"),
        ("history.jsonl", {"seconds": -1}, "line 3 is damaged: 'seconds' must be a number of at"),
        ("history.jsonl", {"parameters": [1]}, "line 3 is damaged: 'parameters' must be"),
        ("history.jsonl", {"ranks": [4, "3"]}, "line 3 is damaged: 'ranks' must be a list of"),
        ("history.jsonl", {"ranks": [4]}, "line 3 is damaged: it tells of other layers"),
        ("history.jsonl", {"ranks": [[4, 3], 3]}, "line 3 is damaged: it tells of other layers"),
        ("history.jsonl", {"spectra": [[1.0]]}, "line 3 is damaged: it tells of other layers"),
        ("history.jsonl", {"spectra": [[], [1.0]]}, "line 3 is damaged: 'spectra' must be"),
        ("history.jsonl", {"incidents": {"x": 1}}, "'incidents' must be counts of repaired"),
        ("history.jsonl", {"condition": [1]}, "line 3 is damaged: 'condition' must be numbers"),
        ("run.json", {"layers": [{}]}, "'layers' must be a list of layers with name"),
        ("run.json", {"layers": [LAYER]}, "its ranks are not of the layers in run.json"),
        ("run.json", {"optimizer": "Adam"}, "'optimizer' must be texts by"),
        ("run.json", {"groups": [{}]}, "'groups' must be a list with weight_decay"),
        ("run.json", {"machine": []}, "'machine' must be an object"),
    ],
)
def test_a_field_that_is_no_such_thing_is_named(name, entries, message, tmp_path):
    run = changed(tmp_path, name, **entries)
    with pytest.raises(ValueError, match=message) as refusal:
        read_runs([run])
    assert str(run) in str(refusal.value)


def test_metrics_that_are_no_numbers_are_left_out(tmp_path):
    run = write_run(tmp_path / "run", metrics={"accuracy": "high", "eval_loss": 10**400})
    facts = page_of(read_runs([run])).numbers["runs"][0]["facts"]
    assert facts["accuracy"] is None and facts["loss"] is None


def test_a_history_without_a_loss_is_drawn(tmp_path):
    run = changed(tmp_path, "history.jsonl")
    file = run / "history.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [{k: v for k, v in line.items() if k != "loss"} | {"seconds": 1.0} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in told))
    assert "Loss over time" in page_of(read_runs([run])).html


@pytest.mark.parametrize("versions", [[[1, 2]], "2.0", {"torch": 2}])
def test_versions_that_are_no_texts_are_refused(versions, tmp_path):
    run = write_run(tmp_path / "run", metrics={"versions": versions})
    with pytest.raises(ValueError, match="'versions' must be texts by names of packages"):
        read_runs([run])


ENDLESS = {"a": {"accuracy": 1, "attacks": {"x": [[float("inf"), 0.5]]}}}


@pytest.mark.parametrize(
    "models", [[], {"a": {}}, {"a": {"accuracy": 1, "attacks": {"x": [[1]]}}}, ENDLESS]
)
def test_an_attack_with_other_results_than_accuracies_is_refused(models, tmp_path):
    run = write_run(tmp_path / "run", metrics={"models": models})
    (run / "options.json").write_text(json.dumps({"attacks": ["fgsm"]}))
    with pytest.raises(ValueError, match="'models' must be accuracies of models under attacks"):
        read_runs([run])
