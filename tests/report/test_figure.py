"""The picture of a run, and the table behind it."""

import pytest

from rankwise.report.attack_figure import draw_attacks
from rankwise.report.figure import draw_run, rank_table, running_mean
from rankwise.report.train_figure import draw_training

HISTORY = [
    {"step": i, "loss": 1 / i, "parameters": 1000 - i, "gradient_norm": 1.0} for i in range(1, 9)
]


def test_layers_are_sorted_into_kinds_and_blocks():
    ranks = {"layer.10.query": 3, "layer.2.query": 1, "layer.2.out.dense": 4, "top": 7}
    kinds, blocks, table = rank_table(ranks)
    assert kinds == ["query", "out.dense", "top"]
    assert blocks == ["", "2", "10"]
    assert table == [[None, 1, 3], [None, 4, None], [7, None, None]]


def test_the_running_mean_is_over_what_has_been_seen():
    assert running_mean([1.0, 3.0, 5.0, 7.0], width=2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("layers", [1, 3, 400])
def test_a_picture_is_drawn_for_any_number_of_layers(layers, tmp_path):
    ranks = {f"h.{i}.attn": 1 + i % 5 for i in range(layers)}
    draw_run({"ranks": ranks, "eval_loss": 0.3, "accuracy": 0.8}, HISTORY, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("layers", [1, 3, 400])
@pytest.mark.parametrize("twin", [True, False])
def test_a_training_is_drawn_with_and_without_its_twin(layers, twin, tmp_path):
    names = [f"h.{i}" for i in range(layers)]
    score = {"loss": 0.5, "accuracy": 0.8}
    metrics = {
        "ranks": dict.fromkeys(names, 2),
        "start": dict.fromkeys(names, 6),
        "shapes": dict.fromkeys(names, [20, 30]),
        "low_rank": score,
        "dense": {"parameters": 2000, **(score if twin else {})},
        "removed": 0.9,
    }
    told = [{**line, "condition": dict.fromkeys(names, 1.0 + i)} for i, line in enumerate(HISTORY)]
    told[-1]["condition"]["h.0"] = None
    histories = {"low_rank": told, **({"dense": HISTORY} if twin else {})}
    draw_training(metrics, histories, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("networks", [1, 3, 9])
@pytest.mark.parametrize("layers", [0, 1, 2, 60])
@pytest.mark.parametrize("certified", [None, [[0.5, 0.3]]])
def test_an_attack_is_drawn_for_any_number_of_networks(networks, layers, certified, tmp_path):
    """With layers of their own, one of them singular."""
    models = {
        f"net {i}": {
            "attacks": {"FGSM": [[0.0, 0.9], [0.1, 0.5]]},
            "certified": certified,
            "condition": {f"{i}.{j}": 1.0 + j if j else None for j in range(layers)},
        }
        for i in range(networks)
    }
    draw_attacks({"models": models}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
