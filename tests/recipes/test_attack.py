"""Attacking trained networks, on small squares: its numbers, its files, its refusals."""

import dataclasses
import json
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from image_files import write_idx
from rankwise.nn.low_rank import LowRankModule
from rankwise.recipes import training
from rankwise.recipes.attack import Outcome, attack, seen
from rankwise.recipes.attack_options import AttackOptions
from rankwise.recipes.attacks import ATTACKS
from rankwise.recipes.history import Watcher
from rankwise.recipes.images import read_images
from rankwise.recipes.networks import BUILT_IN, mlp
from rankwise.recipes.train import train_classifier
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.victims import read_subjects
from rankwise.robust.certificate import certified_accuracy, certified_radius
from rankwise.robust.condition_numbers import condition_numbers
from rankwise.robust.evaluate import evaluate
from rankwise.robust.fgsm import FGSM
from rankwise.robust.lipschitz import lipschitz_bound
from rankwise.robust.pgd import PGD

SILENT = Watcher(say=lambda message: None, step=lambda line: None)
ROWS, EPS, EPS_L2 = 20, (0.1, 0.2), (0.3, 1.0)
FEW = {"attacks": ("fgsm",), "rows": 6, "eps": (0.1,), "eps_l2": (0.5,)}

MODULE = """
import torch
from torch import nn
class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, x):
        return self.function(x)
CORNERS = ((1, 1), (1, 6), (6, 1))
def brightest(x):
    return torch.stack([x[:, 0, i:i + 4, j:j + 4].mean((1, 2)) for i, j in CORNERS], 1)
def corners():
    return Own(brightest)
def rounded():
    return Own(lambda x: brightest(x.round()))
def linear(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(size ** 2, classes))
def singular(classes, size):
    model = linear(classes, size)
    nn.init.zeros_(model[1].weight)
    nn.init.ones_(model[1].weight[:1, :1])
    return model
def wide(classes, size):
    return linear(classes + 1, size)
def narrow(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))
def pair():
    return Own(lambda x: (x, x))
def undefined():
    return Own(lambda x: brightest(x) * float("nan"))
def needy(width):
    return nn.Flatten()
"""


@pytest.fixture(scope="module", autouse=True)
def narrow_perceptron():
    """A bound for 512 units takes longer than all of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILT_IN, "mlp", partial(mlp, width=64))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_idx(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folders of runs: `plain` with a dense twin, `robust` and `unfinished` without."""
    folder = tmp_path_factory.mktemp("runs")
    asked = TrainOptions(
        data=str(data), steps=40, batch_size=20, keep=0.2, output=folder / "plain", threads=1
    )
    train_classifier(asked, SILENT)
    changes = {"output": folder / "robust", "max_norm": 1.0, "dense": False}
    train_classifier(dataclasses.replace(asked, **changes), SILENT)
    shutil.copytree(folder / "robust", folder / "unfinished")
    (folder / "unfinished" / "metrics.json").unlink()
    return folder


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    (tmp_path / "own_victims.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "own_victims"
    sys.modules.pop("own_victims", None)


@pytest.fixture
def options(trained, tmp_path) -> AttackOptions:
    return AttackOptions(
        subjects=(str(trained / "plain"), str(trained / "robust")), attacks=("fgsm", "pgd-l2"),
        eps=EPS, eps_l2=EPS_L2, rows=ROWS, output=tmp_path / "out",
    )  # fmt: skip


@pytest.fixture
def training_here(data, tmp_path) -> AttackOptions:
    return AttackOptions(data=str(data), steps=12, save_every=5, output=tmp_path / "out", **FEW)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Outcome:
    """Of `training_here`."""
    folder = tmp_path_factory.mktemp("whole")
    return attack(AttackOptions(data=str(data), steps=12, output=folder / "out", **FEW), SILENT)


def with_(options: AttackOptions, **changes) -> AttackOptions:
    return dataclasses.replace(options, **changes)


def interrupting(stop: int) -> Watcher:
    """At the step `stop` of the job."""
    taken = []

    def interrupt(line):
        taken.append(line)
        if len(taken) == stop:
            signal.raise_signal(signal.SIGTERM)

    return Watcher(say=lambda message: None, step=interrupt)


def of_networks(outcome: Outcome) -> dict:
    return outcome.metrics["models"]


def test_the_folder_holds_what_is_promised(options):
    outcome = attack(options, SILENT)
    folder = options.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert (folder / "attack.png").read_bytes().startswith(b"\x89PNG")
    names = {"options.json", "metrics.json", "SHA256SUMS", "table.md", "attack.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert list(metrics["models"]) == ["dense", "low rank", "robust"]
    assert metrics["rows"] == ROWS and metrics["surrogate"] is None


def test_the_numbers_are_those_of_the_library_called_directly(options):
    found = of_networks(attack(options, SILENT))
    victims, images = read_subjects(options.subjects, None, options.output, SILENT)
    x, y = images.pixels(images.test)[:ROWS], images.test_labels[:ROWS]
    models = {victim.name: seen(victim, images) for victim in victims}
    for title, method, eps in (
        ("FGSM", FGSM(), EPS),
        ("PGD-20, l2", ATTACKS["pgd-l2"].make(), EPS_L2),
    ):
        direct = evaluate(models, x, y, method, eps)
        for name, accuracies in direct.accuracy.items():
            assert found[name]["attacks"][title] == [
                list(p) for p in zip(direct.eps, accuracies, strict=True)
            ]
    for name, model in models.items():
        radii = certified_radius(model, x, y)
        assert found[name]["certified"] == [[e, certified_accuracy(radii, e)] for e in EPS_L2]
        assert found[name]["lipschitz"] == lipschitz_bound(model, x)
        bare = {key.removeprefix("model."): n for key, n in condition_numbers(model).items()}
        assert found[name]["condition"] == bare


def test_what_is_certified_no_attack_takes(options):
    """And accuracies fall with the budget; some are left at the least one, none at the largest."""
    options = with_(options, attacks=("pgd-l2",), eps_l2=(0.1, 0.3, 1.0, 2.0, 8.0))
    for measures in of_networks(attack(options, SILENT)).values():
        (_, clean), *attacked = measures["attacks"]["PGD-20, l2"]
        certified = [share for _, share in measures["certified"]]
        left = [share for _, share in attacked]
        assert all(c <= a for c, a in zip(certified, left, strict=True))
        assert sorted(left, reverse=True) == left and left[0] <= clean
        assert certified[0] > 0.5 > left[-1]


def test_clean_accuracy_size_and_loss_are_those_that_the_training_told(options, trained):
    found = of_networks(attack(with_(options, rows=1000, attacks=("fgsm",)), SILENT))
    told = json.loads((trained / "plain" / "metrics.json").read_text())
    for name, part in (("dense", "dense"), ("low rank", "low_rank")):
        assert found[name]["accuracy"] == told[part]["accuracy"]
        assert found[name]["attacks"]["FGSM"][0] == [0.0, told[part]["accuracy"]]
        assert found[name]["loss"] == pytest.approx(told[part]["loss"], rel=1e-5)
        assert found[name]["parameters"] == told[part]["parameters"]
    assert found["dense"]["removed"] == 0
    assert found["low rank"]["removed"] == pytest.approx(told["removed"])


def test_the_table_says_what_the_metrics_say(options):
    found = of_networks(attack(options, SILENT))
    lines = (options.output / "table.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines}
    cells = {name: [cell.strip() for cell in row] for name, row in cells.items()}
    assert cells[""] == ["dense", "low rank", "robust"]
    measures = list(found.values())
    attacked = [f"{100 * m['attacks']['FGSM'][2][1]:.1f}" for m in measures]
    assert cells["FGSM, eps 0.2"] == attacked
    assert cells["certified, l2 eps 0.3"] == [f"{100 * m['certified'][0][1]:.1f}" for m in measures]
    worst = [f"{max(m['condition'].values()):.1f}" for m in measures]
    assert cells["largest condition number"] == worst
    assert cells["parameters"] == [f"{m['parameters']:,}" for m in measures]


def test_a_surrogate_is_shown_its_own_images_and_others_are_shown_them_too(options):
    white = of_networks(attack(options, SILENT))
    asked = with_(options, surrogate="dense", output=options.output.with_name("transfer"))
    transfer = of_networks(attack(asked, SILENT))
    assert transfer["dense"]["attacks"] == white["dense"]["attacks"]
    for name in ("low rank", "robust"):
        assert transfer[name]["attacks"] != white[name]["attacks"]
        for title, pairs in transfer[name]["attacks"].items():
            assert all(
                p[1] >= q[1] for p, q in zip(pairs, white[name]["attacks"][title], strict=True)
            )


def test_budgets_are_sorted_and_given_once(options):
    asked = with_(options, eps=(0.2, 0.1, 0.2), eps_l2=(1.0, 0.3, 1.0), attacks=("fgsm",))
    found = of_networks(attack(asked, SILENT))["robust"]
    assert [eps for eps, _ in found["attacks"]["FGSM"]] == [0.0, 0.1, 0.2]
    assert [eps for eps, _ in found["certified"]] == [0.3, 1.0]


def test_without_subjects_three_networks_are_trained_and_the_robust_one_obeys(training_here):
    found = of_networks(attack(with_(training_here, max_norm=0.5), SILENT))
    assert list(found) == ["dense", "low rank", "robust"]
    folders = [str(training_here.output / name) for name in ("low-rank", "robust")]
    victims, _ = read_subjects(folders, None, Path("elsewhere"), SILENT)
    norms = {victim.name: _norms(victim.model) for victim in victims}
    assert max(norms["robust"]) <= 0.5 * (1 + 1e-5)
    assert max(norms["low rank"]) > 0.5
    for name in folders:
        assert json.loads((Path(name) / "options.json").read_text())["steps"] == 12


def _norms(model) -> list[float]:
    layers = [m for m in model.modules() if isinstance(m, LowRankModule)]
    return [float(torch.linalg.matrix_norm(m.factors()[1].double(), 2)) for m in layers]


def test_epochs_are_told_to_the_training(training_here):
    attack(with_(training_here, steps=None, epochs=1), SILENT)
    for name in ("low-rank", "robust"):
        options = json.loads((training_here.output / name / "options.json").read_text())
        assert (options["epochs"], options["steps"]) == (1, None)


@pytest.mark.parametrize("stop", [3, 12, 27])
def test_an_interrupted_training_goes_on_exactly(training_here, stop, uninterrupted):
    """In the first and last network, and between two."""
    with pytest.raises(training.Interrupted, match=f"--resume --output {training_here.output}$"):
        attack(training_here, interrupting(stop))
    assert not (training_here.output / "metrics.json").exists()
    resumed = attack(AttackOptions(output=training_here.output, resume=True), SILENT)
    assert of_networks(resumed) == of_networks(uninterrupted)
    assert resumed.metrics["options"]["steps"] == 12


@pytest.mark.parametrize("step", [3, None])
def test_a_job_that_is_killed_anywhere_is_repeated_from_there(training_here, step, uninterrupted):
    """Before its first checkpoint, and while it attacks."""
    taken = []

    class Killed(Exception):
        pass

    def kill_while_training(line):
        taken.append(line)
        if len(taken) == step:
            raise Killed

    def kill_while_attacking(message):
        if step is None and message.startswith("FGSM"):
            raise Killed

    with pytest.raises(Killed):
        attack(training_here, Watcher(say=kill_while_attacking, step=kill_while_training))
    resumed = attack(AttackOptions(output=training_here.output, resume=True), SILENT)
    assert of_networks(resumed) == of_networks(uninterrupted)


def test_a_run_begun_anew_keeps_no_network_of_the_earlier_one(training_here):
    attack(training_here, SILENT)
    anew = with_(training_here, steps=9, overwrite=True)
    with pytest.raises(training.Interrupted):
        attack(anew, interrupting(5))
    attack(AttackOptions(output=training_here.output, resume=True), SILENT)
    for name in ("low-rank", "robust"):
        metrics = json.loads((training_here.output / name / "metrics.json").read_text())
        assert metrics["steps"] == 9


def test_a_resumed_run_keeps_its_options_and_a_finished_one_is_not_overwritten(options, trained):
    attack(options, SILENT)
    with pytest.raises(ValueError, match="is not empty; --resume .*--overwrite"):
        attack(options, SILENT)
    with pytest.raises(ValueError, match="is finished"):
        attack(AttackOptions(output=options.output, resume=True), SILENT)
    (options.output / "metrics.json").unlink()
    changed = AttackOptions(output=options.output, resume=True, eps=(0.3,), subjects=("other",))
    with pytest.raises(ValueError, match=r"leave out --eps 0\.3 \(was 0\.1 0\.2\), other \(was /"):
        attack(changed, SILENT)
    resumed = attack(AttackOptions(output=options.output, resume=True), SILENT)
    assert list(of_networks(resumed)) == ["dense", "low rank", "robust"]
    again = attack(with_(options, overwrite=True, subjects=(str(trained / "robust"),)), SILENT)
    assert list(of_networks(again)) == ["robust"]


def test_an_imported_network_gets_in_beside_a_run(options, own_module):
    """One that has no parameters, and no rule for a bound."""
    subjects = (f"{own_module}:corners", options.subjects[0])
    found = of_networks(attack(with_(options, subjects=subjects), SILENT))
    assert list(found) == ["corners", "dense", "low rank"]
    own = found["corners"]
    assert own["accuracy"] == 1.0 and own["removed"] is None and own["parameters"] == 0
    assert own["certified"] is None and "(Own) has no known Lipschitz bound" in own["uncertified"]
    assert own["masking"] == []
    table = (options.output / "table.md").read_text()
    assert "| removed, % | - | 0.0 |" in table and "| certified, l2 eps 0.3 | - | " in table


def test_a_network_that_hides_its_gradients_is_reported(options, own_module):
    subjects = (f"{own_module}:corners", f"{own_module}:rounded")
    asked = with_(options, subjects=subjects, data=str(_data_of(options)), eps=(0.5,))
    found = of_networks(attack(asked, SILENT))
    assert found["corners"]["masking"] == []
    assert any("the attack still leaves 100.0%" in sign for sign in found["rounded"]["masking"])


def test_a_singular_weight_is_null_in_the_file(options, own_module):
    subjects = (f"{own_module}:singular",)
    asked = with_(options, subjects=subjects, data=str(_data_of(options)), **FEW)
    attack(asked, SILENT)
    text = (options.output / "metrics.json").read_text()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["models"]["singular"]["condition"] == {"1": None}
    assert "| largest condition number | inf |" in (options.output / "table.md").read_text()


def test_networks_of_one_name_are_told_apart(options, trained, tmp_path):
    copy = shutil.copytree(trained / "plain", tmp_path / "copy")
    plain = str(trained / "plain")
    found = of_networks(attack(with_(options, subjects=(plain, f"{copy}/"), **FEW), SILENT))
    assert list(found) == [
        f"dense ({plain})", f"low rank ({plain})", f"dense ({copy}/)", f"low rank ({copy}/)"
    ]  # fmt: skip
    assert found[f"dense ({plain})"] == found[f"dense ({copy}/)"]


def test_a_run_in_a_folder_called_dense_or_dot_has_two_names(
    options, trained, tmp_path, monkeypatch
):
    run = train_in(tmp_path / "dense", trained)
    monkeypatch.chdir(run)
    found = of_networks(attack(with_(options, subjects=(".",), **FEW), SILENT))
    assert list(found) == ["dense", "low rank"]
    monkeypatch.chdir(trained / "robust")
    anew = with_(options, subjects=(".",), overwrite=True, **FEW)
    assert list(of_networks(attack(anew, SILENT))) == ["robust"]


def train_in(folder: Path, trained: Path) -> Path:
    data = json.loads((trained / "plain" / "options.json").read_text())["data"]
    options = TrainOptions(data=data, steps=2, batch_size=20, keep=0.2, beta=0.1, output=folder)
    return train_classifier(options, SILENT).folder


def _data_of(options: AttackOptions) -> str:
    return json.loads((Path(options.subjects[0]) / "options.json").read_text())["data"]


@pytest.mark.parametrize("way", ["relative", "absolute"])
def test_the_same_images_may_be_written_in_two_ways(options, way, monkeypatch):
    data = Path(_data_of(options))
    monkeypatch.chdir(data.parent)
    asked = with_(options, data="./data" if way == "relative" else str(data), **FEW)
    assert len(of_networks(attack(asked, SILENT))) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rows": 0}, "--rows must be at least 1, got 0"),
        ({"attacks": ()}, "--attacks must be among fgsm, .*, got none"),
        ({"attacks": ("fgsm", "pdg")}, "--attacks must be among fgsm, .*, got pdg"),
        ({"attacks": ("pgd", "pgd")}, "--attacks must not name one twice, got pgd pgd"),
        ({"attacks": ("auto",)}, "--attacks auto compares the 4 largest logits, .* 3 classes"),
        ({"eps": ()}, r"--eps must be numbers in \(0, 1\], of a pixel, got none"),
        ({"eps": (0.1, 1.5)}, r"--eps must be numbers in \(0, 1\], of a pixel, got 0.1 1.5"),
        ({"eps": (0.0,)}, "--eps must be numbers in .*, got 0.0"),
        ({"eps": (float("nan"),)}, "--eps must be numbers in .*, got nan"),
        ({"eps_l2": (-1.0,)}, "--eps-l2 must be finite positive numbers, got -1.0"),
        ({"eps_l2": (float("inf"),)}, "--eps-l2 must be finite positive numbers, got inf"),
        ({"steps": 5}, "--steps is for training without subjects; leave it out, got 5"),
        ({"max_norm": 1.0}, "--max-norm is for training without subjects"),
        ({"max_norm": 0.0, "subjects": ()}, "--max-norm must be finite and positive, got 0.0"),
        ({"steps": 5, "epochs": 5, "subjects": ()}, "--epochs and --steps both say how long"),
        ({"resume": True, "overwrite": True}, "--resume .* --overwrite"),
        ({"resume": True}, "holds no run to resume"),
        ({"surrogate": "robsut"}, "must be one of 'dense', 'low rank', 'robust', got 'robsut'"),
        ({"data": "nowhere"}, r"same images, got .*data \(.*plain\), .* nowhere \(--data\)"),
        ({"data": "nowhere", "subjects": ()}, "--data nowhere is no folder"),
    ],
)
def test_options_that_cannot_work_are_named_and_nothing_is_written(options, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        attack(with_(options, **change), SILENT)
    assert not options.output.exists()


def test_a_surrogate_without_a_network_is_told_before_the_training(training_here):
    with pytest.raises(ValueError, match="--surrogate must be one of 'dense', 'low rank', 'robu"):
        attack(with_(training_here, surrogate="small"), SILENT)
    assert not training_here.output.exists()


@pytest.mark.parametrize(
    "subject, error, message",
    [
        ("nowhere", FileNotFoundError, "'nowhere' is neither a run folder nor an import path"),
        ("own_victims:", FileNotFoundError, "'own_victims:' is neither a run folder nor"),
        ("mlp", ValueError, "mlp has to be trained first: rankwise train --model mlp"),
        ("RUNS/unfinished", ValueError, "not finished; rankwise train --resume --output .*unfin"),
        ("RUNS/plain/dense", ValueError, "dense holds no run of `rankwise train`"),
        ("RUNS", ValueError, "holds no run of `rankwise train`"),
        ("RUNS/robust", ValueError, "robust is given twice"),
        ("no_such_module:f", ImportError, "subject no_such_module:f could not be imported"),
        ("own_victims:absent", ImportError, "subject own_victims:absent could not be imported"),
        ("own_victims:CORNERS", TypeError, "subject own_victims:CORNERS is tuple, which cannot"),
        ("own_victims:needy", TypeError, "needs more than classes, channels, size: .*'width'"),
        ("own_victims:wide", ValueError, r"returns \(1, 4\) for one image; logits of 3 classes"),
        ("own_victims:narrow", ValueError, r"does not take images \(1, 1, 12, 12\): mat1 and"),
        ("own_victims:pair", ValueError, "own_victims:pair returns tuple for one image"),
        ("own_victims:undefined", ValueError, "returns logits that are not finite"),
    ],
)
def test_a_subject_that_is_none_is_refused(options, own_module, trained, subject, error, message):
    subjects = (str(trained / "robust"), subject.replace("RUNS", str(trained)))
    with pytest.raises(error, match=message) as raised:
        attack(with_(options, subjects=subjects), SILENT)
    assert len(str(raised.value).splitlines()) == 1
    assert not options.output.exists()


def test_runs_of_other_commands_or_for_other_images_are_refused(options, trained, tmp_path):
    attack(with_(options, **FEW), SILENT)
    with pytest.raises(ValueError, match="out holds no run of `rankwise train`"):
        attack(with_(options, subjects=(str(options.output),), output=tmp_path / "b"), SILENT)
    other = train_classifier(
        TrainOptions(
            data=str(write_idx(tmp_path / "other")), steps=2, keep=0.2, output=tmp_path / "run"
        ),
        SILENT,
    )
    both = (str(trained / "plain"), str(other.folder))
    with pytest.raises(ValueError, match="must be for the same images, got .*plain.*, .*other"):
        attack(with_(options, subjects=both, output=tmp_path / "b"), SILENT)
    assert not (tmp_path / "b").exists()


def test_a_run_to_attack_is_not_replaced_by_the_attack(options, trained):
    plain = trained / "plain"
    before = {p: p.read_bytes() for p in plain.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="plain is a run to attack; name another folder"):
        attack(with_(options, output=plain, overwrite=True), SILENT)
    assert {p: p.read_bytes() for p in plain.rglob("*") if p.is_file()} == before


def test_every_attack_that_has_a_name_makes_an_attack_of_the_images(data):
    images = read_images(str(data))
    x, y = images.pixels(images.test[:3]), images.test_labels[:3]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 4))
    for name, named in ATTACKS.items():
        method = named.make()
        shown = method.perturb(model, x, y, 0.3)
        assert float(method.ball.size(shown - x).max()) <= 0.3 * (1 + 1e-5), name
    assert len({named.title for named in ATTACKS.values()}) == len(ATTACKS)
    assert isinstance(ATTACKS["pgd"].make(), PGD)
