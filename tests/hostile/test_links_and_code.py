"""Files name other files, and code; neither is followed unless the user says so."""

import ast
import json
from pathlib import Path

import pytest

import rankwise
from rankwise.recipes.folder import begin, check_links, is_import_path, prepared
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.victims import read_subjects
from rankwise.report.history import append_line

SOURCES = sorted(Path(rankwise.__file__).parent.rglob("*.py"))


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "metrics.json").write_text("precious")
    return folder


@pytest.mark.parametrize("how", ["overwrite", "resume"])
@pytest.mark.parametrize("name", ["metrics.json", "lora", "dense/history.jsonl"])
def test_a_link_out_of_the_folder_of_a_run_is_refused(name, how, elsewhere, tmp_path):
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    target = elsewhere / "metrics.json" if "." in name else elsewhere
    (run / name).symlink_to(target)
    with pytest.raises(ValueError, match=f"{name} is a link out of"):
        prepared(TrainOptions(output=run, **{how: True}))
    assert (elsewhere / "metrics.json").read_text() == "precious"


def test_links_within_the_folder_and_to_the_folder_are_fine(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "a").write_text("")
    (run / "b").symlink_to(run / "a")
    (tmp_path / "latest").symlink_to(run)
    check_links(run)
    check_links(tmp_path / "latest")


def test_a_new_run_replaces_a_link_and_not_what_it_leads_to(elsewhere, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.json", "options.json"):
        (run / name).symlink_to(elsewhere / "metrics.json")
    begin(TrainOptions(output=run), ())
    assert (elsewhere / "metrics.json").read_text() == "precious"
    assert not (run / "options.json").is_symlink()


def test_no_step_is_written_through_a_link(elsewhere, tmp_path):
    history = tmp_path / "history.jsonl"
    history.symlink_to(elsewhere / "new")
    with pytest.raises(ValueError, match="is a link, which is not written through"):
        append_line(history, {"step": 1, "loss": 1.0})
    assert not (elsewhere / "new").exists()


def run_of(folder: Path, model: str) -> Path:
    folder.mkdir()
    values = TrainOptions(output=folder).to_json() | {"model": model}
    (folder / "options.json").write_text(json.dumps(values))
    return folder


def test_going_on_with_a_run_imports_no_network_that_the_user_does_not_name(tmp_path):
    run = run_of(tmp_path / "run", "antigravity:fly")
    with pytest.raises(ValueError, match="antigravity:fly, whose code would run: name it too"):
        prepared(TrainOptions(output=run, resume=True))
    asked = TrainOptions(output=run, resume=True, model="antigravity:fly")
    assert prepared(asked).model == "antigravity:fly"


def test_attacking_a_run_imports_no_network_without_leave(tmp_path, watcher):
    run = run_of(tmp_path / "run", "antigravity:fly")
    (run / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="antigravity:fly, whose code would run: --trust-code"):
        read_subjects([str(run)], None, tmp_path / "out", watcher)


def test_names_of_built_in_networks_and_folders_are_no_code(tmp_path):
    assert is_import_path("a.b:c")
    for name in ("mlp", "org/model", str(tmp_path), "a:", ":b", None, ["a:b"]):
        assert not is_import_path(name)


@pytest.fixture
def watcher():
    from rankwise.recipes.history import Watcher

    return Watcher(say=lambda message: None, step=lambda line: None)


def test_nothing_in_the_package_unpickles_or_runs_text():
    """One file of a pinned hash is read by torch, which takes numbers alone from it."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names}
                names |= {(getattr(node, "module", None) or "").split(".")[0]}
                found |= {(path.name, n) for n in names & {"pickle", "shelve", "marshal", "dill"}}
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                told = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if (
                    called in ("eval", "exec", "torch.load")
                    or told.get("trust_remote_code") == "True"
                ):
                    found.add((path.name, f"{called} {told.get('weights_only')}"))
    assert found == {("darcy.py", "torch.load True")}
