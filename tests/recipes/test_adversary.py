"""Images as an attacker would show them, and training on them."""

import pytest
import torch

from image_files import write_idx
from rankwise.recipes.adversary import adversary
from rankwise.recipes.images import read_images
from rankwise.robust.evaluate import evaluate
from rankwise.robust.normalised import Normalised
from rankwise.robust.pgd import PGD


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(144, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)
    )


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("eps", [0.02, 0.4])
def test_each_pixel_moves_by_at_most_eps_and_stays_one(tmp_path, steps, eps):
    data = read_images(str(write_idx(tmp_path / "data")))
    shown = adversary(data, eps, steps)(small(), data.train, data.labels)
    mean, deviation = data.mean[0], data.deviation[0]
    pixels, before = shown * deviation + mean, data.train * deviation + mean
    assert float((pixels - before).abs().max()) == pytest.approx(eps, rel=1e-3)
    assert -1e-6 <= float(pixels.min()) and float(pixels.max()) <= 1 + 1e-6


def test_without_a_budget_images_stay_bit_by_bit(tmp_path):
    data = read_images(str(write_idx(tmp_path / "data")))
    assert torch.equal(adversary(data, 0.0, 1)(small(), data.train, data.labels), data.train)


@pytest.mark.parametrize("steps", [1, 3])
def test_training_against_it_helps_under_attack(tmp_path, steps):
    data = read_images(str(write_idx(tmp_path / "data")))
    models = {"plain": small(), "adversarial": small()}
    for (name, model), eps in zip(models.items(), (0.0, 0.25), strict=True):
        changed = adversary(data, eps, steps)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(60):
            optimizer.zero_grad()
            logits = model(changed(model, data.train, data.labels))
            torch.nn.functional.cross_entropy(logits, data.labels).backward()
            optimizer.step()
        models[name] = Normalised(model, data.mean, data.deviation).eval()
    x = data.pixels(data.test)
    found = evaluate(models, x, data.test_labels, PGD(), (0.25,)).accuracy
    assert found["plain"][0] == found["adversarial"][0] == 1.0
    assert found["adversarial"][1] > found["plain"][1]
