"""A folder of training states: what stays, what is loaded, and that damage is found."""

import json
import random
import warnings

import pytest
import torch
from safetensors import safe_open
from torch import nn

from rankwise.io.checkpoint import save
from rankwise.io.training import load_training, save_training
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.tolerance import Tolerance
from rankwise.surgery.adapt import adapt_


def parts() -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    adapt_(model, rank=2, select="0", train="2")
    return {"model": model, "optimizer": Optimizer(model, rank_rule=Tolerance(rtol=0.1, every=2))}


def go_on(made: dict, steps: int) -> None:
    for _ in range(steps):
        made["optimizer"].zero_grad()
        made["model"](torch.randn(5, 6)).square().sum().backward()
        made["optimizer"].step()


def numbers(made: dict) -> list:
    """All numbers of model and optimizer."""
    state = made["optimizer"].state_dict()["state"]
    tensors = [*made["model"].state_dict().values()]
    tensors += [t for entry in state.values() for t in entry.values() if torch.is_tensor(t)]
    return [t.detach().tolist() for t in tensors]


def filled(folder, steps, made=None, **options) -> dict:
    made = made or parts()
    for step in steps:
        go_on(made, 1)
        save_training(folder, **made, progress={"step": step}, **options)
    return made


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def damage(file) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def test_the_newest_stay_and_the_newest_is_loaded(tmp_path):
    folder = tmp_path / "made" / "checkpoints"
    made = filled(folder, (1, 2, 150))
    assert names(folder) == ["step-000002.safetensors", "step-000150.safetensors"]
    fresh = parts()
    assert load_training(folder, **fresh) == {"step": 150}
    assert numbers(fresh) == numbers(made)
    filled(folder, (151, 1_234_567), made, keep=3)
    assert names(folder) == [
        "step-000150.safetensors", "step-000151.safetensors", "step-1234567.safetensors",
    ]  # fmt: skip


def test_the_best_stays_beside_the_newest(tmp_path):
    made = parts()
    for step, score in enumerate([3.0, 1.0, 2.0, None, 4.0, 5.0], 1):
        filled(tmp_path, [step], made, score=score)
    assert names(tmp_path) == [f"step-00000{step}.safetensors" for step in (2, 5, 6)]
    with safe_open(tmp_path / "step-000002.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["rankwise"])["score"] == 1.0
    filled(tmp_path, [7], made, keep=1, score=0.5)
    assert names(tmp_path) == ["step-000007.safetensors"]
    assert load_training(tmp_path, **made) == {"step": 7}


def test_of_equal_scores_the_newer_stays(tmp_path):
    filled(tmp_path, (1, 2, 3), keep=1, score=1.0)
    assert names(tmp_path) == ["step-000003.safetensors"]


def test_where_the_newest_is_damaged_the_one_before_is_taken(tmp_path):
    made = parts()
    filled(tmp_path, (1, 2), made)
    expected = numbers(made)
    filled(tmp_path, (3, 4), made, keep=3)
    damage(tmp_path / "step-000004.safetensors")
    (tmp_path / "step-000003.safetensors").write_bytes(b"")
    fresh = parts()
    named = r"step-000004.*step-000003.*from .*step-000002"
    with pytest.warns(RuntimeWarning, match=named) as told:
        assert load_training(tmp_path, **fresh) == {"step": 2}
    assert told[0].filename == __file__
    assert numbers(fresh) == expected
    # Going on replaces what was damaged.
    filled(tmp_path, [3], fresh)
    assert names(tmp_path) == ["step-000002.safetensors", "step-000003.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_training(tmp_path, **parts()) == {"step": 3}


def test_where_none_is_whole_all_are_named_and_nothing_is_changed(tmp_path):
    filled(tmp_path, (1, 2))
    for file in tmp_path.iterdir():
        damage(file)
    fresh = parts()
    before = numbers(fresh)
    with pytest.raises(ValueError, match=r"no checkpoint in .*step-000002.*step-000001"):
        load_training(tmp_path, **fresh)
    assert numbers(fresh) == before


def test_a_folder_without_any_is_told(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
            load_training(folder, **parts())


def test_a_later_whole_file_is_of_another_run_and_not_mixed_in(tmp_path):
    made = filled(tmp_path, (5, 6))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"step-000006\.safetensors is of a later step than 3"):
        filled(tmp_path, [3], made)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    for name in ("step-1.safetensors", "step-000001.txt", "notes.safetensors"):
        (tmp_path / name).write_text("mine")
    filled(tmp_path, (1, 2, 3), keep=1)
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("step", [None, -1, 1.0, True, "1"])
def test_a_step_is_needed(tmp_path, step):
    progress = {} if step is None else {"step": step}
    with pytest.raises(ValueError, match=r"numbered by `progress\['step'\]`, an integer from 0 to"):
        save_training(tmp_path / "folder", **parts(), progress=progress)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep": 0}, "`keep` must be an integer of at least 1, got 0"),
        ({"keep": 1.5}, "`keep` must be an integer of at least 1, got 1.5"),
        ({"score": float("nan")}, "`score` must be a finite number"),
        ({"score": "1"}, "`score` must be a finite number"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        save_training(tmp_path, **parts(), progress={"step": 1}, **options)
    assert names(tmp_path) == []


def test_a_thousand_flipped_bits_and_cuts_of_a_checkpoint_are_named_and_change_nothing(tmp_path):
    path = tmp_path / "run.safetensors"
    made = parts()
    go_on(made, 4)
    save_training(path, **made, progress={"step": 4})
    whole, drawn = path.read_bytes(), random.Random(0)
    fresh = parts()
    go_on(fresh, 1)
    before, state = numbers(fresh), torch.get_rng_state()
    header = 8 * (8 + int.from_bytes(whole[:8], "little"))
    places = [drawn.randrange(8 * len(whole)) for _ in range(500)]
    places += [drawn.randrange(header) for _ in range(500)]
    broken = [0, 1, 8, *(drawn.randrange(len(whole)) for _ in range(50))]
    for data in (*(_flipped(whole, bit) for bit in places), *(whole[:n] for n in broken)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"run\.safetensors is damaged"):
            load_training(path, **fresh)
    assert numbers(fresh) == before
    assert torch.equal(torch.get_rng_state(), state)
    path.write_bytes(whole)
    load_training(path, **fresh)
    assert numbers(fresh) == numbers(made)


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_files_of_others_stay_where_they_are(tmp_path):
    made = parts()
    older, later = tmp_path / "step-000001.safetensors", tmp_path / "step-000500.safetensors"
    save(made["model"], older)
    filled(tmp_path, (2, 3, 4), made)
    assert names(tmp_path) == [older.name, "step-000003.safetensors", "step-000004.safetensors"]
    save(made["model"], later)
    content = later.read_bytes()
    with pytest.raises(ValueError, match=rf"{later.name} has format .* into another folder"):
        save_training(tmp_path, **made, progress={"step": 5})
    assert later.read_bytes() == content


def test_what_only_has_the_name_of_a_checkpoint_is_none(tmp_path):
    made = filled(tmp_path, (4,))
    (tmp_path / "step-000009.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "step-000010.safetensors").mkdir()
    assert load_training(tmp_path, **parts()) == {"step": 4}
    filled(tmp_path, (5,), made)
    assert load_training(tmp_path, **parts()) == {"step": 5}
