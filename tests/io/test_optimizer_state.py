"""Which saved states of optimizers are taken: all that their steps can go on from."""

import pytest
import torch
from torch import nn

import rankwise as rw


class Lion(torch.optim.Optimizer):
    """A moment without a count of steps."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3})

    def step(self):
        for p in self.param_groups[0]["params"]:
            moment = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
            moment.lerp_(p.grad, 0.1)
            p.data.sub_(moment.sign(), alpha=self.param_groups[0]["lr"])


MADE = {
    "infinite option": (lambda m: rw.Optimizer(m, max_step=float("inf")),) * 2,
    "moments without steps": (lambda m: Lion(m.parameters()),) * 2,
    "None for a choice": (
        lambda m: torch.optim.AdamW(m.parameters()),
        lambda m: torch.optim.AdamW(m.parameters(), foreach=True),
    ),
    "a tensor for a rate": (
        lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(1e-3)),
        lambda m: torch.optim.AdamW(m.parameters()),
    ),
}


def network(adapted: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
    if adapted:
        rw.adapt_(model, rank=2)
    return model


@pytest.mark.parametrize("name", MADE)
def test_what_steps_can_go_on_from_is_taken(name, tmp_path):
    file, (saved, loaded) = tmp_path / "x.safetensors", MADE[name]
    model = network(name == "infinite option")
    optimizer = saved(model)
    model(torch.ones(3, 6)).sum().backward()
    optimizer.step()
    rw.save_training(file, model=model, optimizer=optimizer, progress={})
    other = network(name == "infinite option")
    again = loaded(other)
    rw.load_training(file, model=other, optimizer=again)
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    assert len(again.state_dict()["state"]) == len(optimizer.state_dict()["state"])


@pytest.mark.parametrize("change", ["shape", "steps", "rate"])
def test_what_they_cannot_is_refused_with_the_file(change, tmp_path):
    file, model = tmp_path / "x.safetensors", network(False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 6)).sum().backward()
    optimizer.step()
    state = optimizer.state[model[0].weight]
    if change == "shape":
        state["exp_avg"] = torch.zeros(2)
    elif change == "steps":
        del state["step"]
    else:
        optimizer.param_groups[0]["lr"] = float("nan")
    rw.save_training(file, model=model, optimizer=optimizer, progress={})
    other = network(False)
    with pytest.raises(ValueError, match=r"x\.safetensors: "):
        rw.load_training(file, model=other, optimizer=torch.optim.AdamW(other.parameters()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_that_are_none_are_refused_by_file_and_entry(name, value, tmp_path):
    """But not a second moment that has overflowed: its parameter rests, and is saved like that."""
    file, model = tmp_path / "x.safetensors", network(False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 6)).sum().backward()
    optimizer.step()
    optimizer.state[model[0].weight][name][0, 0] = value
    rw.save_training(file, model=model, optimizer=optimizer, progress={})
    other = network(False)
    again = torch.optim.AdamW(other.parameters())
    if (name, value) == ("exp_avg_sq", float("inf")):
        rw.load_training(file, model=other, optimizer=again)
        other(torch.ones(3, 6)).sum().backward()
        again.step()
        assert all(bool(p.isfinite().all()) for p in other.parameters())
        return
    with pytest.raises(ValueError, match=rf"x\.safetensors: '{name}' of the .* parameter 0 has"):
        rw.load_training(file, model=other, optimizer=again)


SCHEDULES = {
    "step_size": (lambda o: torch.optim.lr_scheduler.StepLR(o, 2), [0, None, "2", float("nan")]),
    "T_max": (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9), [0, [9]]),
    "milestones": (lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2]), [[2], 2]),
    "base_lrs": (lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), [[], ["0"], 0.1]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_could_not_take_a_step_is_refused_by_its_entry(name, tmp_path):
    file, model = tmp_path / "x.safetensors", network(False)
    made, wrong = SCHEDULES[name]
    optimizer = torch.optim.AdamW(model.parameters())
    for value in wrong:
        scheduler = made(optimizer)
        setattr(scheduler, name, value)
        parts = {"model": model, "optimizer": optimizer}
        rw.save_training(file, **parts, scheduler=scheduler, progress={})
        own = made(optimizer)
        with pytest.raises(ValueError, match=rf"x\.safetensors: '{name}' in the state of the"):
            rw.load_training(file, **parts, scheduler=own)
        assert own.state_dict() == made(optimizer).state_dict()
