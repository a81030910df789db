"""accelerate needs no integration: `prepare`, `accumulate`, `save_state` and `load_state` do."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

import rankwise as rw
from loops import classifier, optimizer_of, ranks, rows, same_weights
from rankwise.integrators import BUG

STEPS = 10


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate's options are the process's, once they are set."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Loop:
    """A user's loop; dropout is on, rows come in a shuffled order."""

    def __init__(self, **accelerator) -> None:
        self.accelerator = Accelerator(cpu=True, **accelerator)
        model = classifier()
        optimizer = optimizer_of(model)
        loader = DataLoader(rows(8 * STEPS), batch_size=8)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
        self.parts = self.accelerator.prepare(model, optimizer, loader, scheduler)
        self.losses: list[float] = []

    @property
    def model(self):
        return self.accelerator.unwrap_model(self.parts[0])

    def run(self, first: int = 0, last: int = STEPS) -> "Loop":
        model, optimizer, loader, scheduler = self.parts
        model.train()
        batches = skip_first_batches(loader, first)
        for _, batch in zip(range(first, last), batches, strict=False):
            with self.accelerator.accumulate(model):
                loss = model(**batch).loss
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            self.losses.append(loss.item())
        return self


@pytest.mark.parametrize("stop", [4, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    whole = Loop().run(0, stop)
    whole.accelerator.save_state(tmp_path / "state")
    whole.run(stop)
    again = Loop()
    before = ranks(again.model)
    again.accelerator.load_state(tmp_path / "state")
    assert ranks(again.model) != before
    again.run(stop)
    assert again.losses == whole.losses[stop:]
    assert same_weights(again.model, whole.model)
    assert again.parts[1].optimizer.steps == STEPS


def test_the_loop_is_a_bare_one():
    prepared = Loop().run()
    model = classifier()
    optimizer = optimizer_of(model)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    model.train()
    for batch in DataLoader(rows(8 * STEPS), batch_size=8):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert ranks(model) != ranks(classifier())
    assert same_weights(prepared.model, model)


def test_accumulation_steps_after_the_last_of_the_batches():
    loop = Loop(gradient_accumulation_steps=2).run()
    assert loop.parts[1].optimizer.steps == STEPS / 2


def test_bfloat16_leaves_factors_in_float32():
    loop = Loop(mixed_precision="bf16").run()
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}
    assert ranks(loop.model) != ranks(classifier())


def test_a_closure_is_handed_on_to_an_integrator_that_runs_the_model_again():
    def parts():
        model = classifier(dropout=0.0)
        return model, rw.Optimizer(model, lr=0.1, rule=rw.SGD(), integrator=BUG())

    accelerator, batch = Accelerator(cpu=True), next(iter(DataLoader(rows(8), batch_size=8)))
    model, optimizer = accelerator.prepare(*parts())
    other, bare = parts()

    def closure(model, optimizer):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(lambda: closure(model, optimizer))
        bare.step(lambda: closure(other, bare))
    assert same_weights(model, other)
    assert bare.steps == 3


def test_a_stock_optimizer_inside_is_refused(tmp_path: Path):
    accelerator, model = Accelerator(cpu=True), classifier()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(**next(iter(DataLoader(rows(4), batch_size=4)))).loss)
    with pytest.raises(ValueError, match="must not step"):
        optimizer.step()
