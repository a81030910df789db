"""The recorder: what it writes of any loop, and that a resumed run writes the same."""

import json
from math import isnan

import pytest
import torch
from torch import nn

import rankwise as rw
from networks import batch, thin_layers
from rankwise.nn import TuckerConv2d
from rankwise.report.history import read_history
from rankwise.report.recorder import Recorder
from rankwise.robust import condition_numbers
from tucker_kernels import tucker

MEASURED = ("seconds", "memory", "peak_memory")
NAMES = ["0", "2"]


def optimizer_of(model: nn.Module, **options) -> rw.Optimizer:
    return rw.Optimizer(model, lr=1e-2, rank_rule=rw.Tolerance(rtol=0.05, every=3), **options)


def go(model, optimizer, recorder, first: int, last: int, broken: tuple[int, ...] = ()) -> None:
    for i in range(first, last):
        x, y = batch(i)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean() * (float("nan") if i in broken else 1.0)
        loss.backward()
        optimizer.step()
        recorder.step(loss.item())


def recorded(folder, steps: int = 30, every: int = 5, **options):
    model = thin_layers()
    optimizer = optimizer_of(model)
    recorder = Recorder(folder, optimizer, every)
    go(model, optimizer, recorder, 0, steps, **options)
    return model, optimizer, recorder


def told(folder) -> list[dict]:
    lines = read_history(folder / "history.jsonl")
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def test_a_line_tells_the_step_that_was_taken(tmp_path):
    model = thin_layers()
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    recorder = Recorder(tmp_path, optimizer)
    for i in range(4):
        x, y = batch(i)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        norm, lr = optimizer.gradient_norm().item(), schedule.get_last_lr()[-1]
        optimizer.step()
        schedule.step()
        line = recorder.step(loss.detach())
        assert (line["step"], line["loss"]) == (i + 1, loss.item())
        assert (line["gradient_norm"], line["lr"]) == (norm, lr)
        factors = sum(layer.rank * sum(layer.shape) for _, layer in optimizer.layers)
        assert line["parameters"] == factors + (2 * 7 + 2)
    assert line == read_history(tmp_path / "history.jsonl")[-1]


def test_ranks_are_told_when_they_change_and_only_then(tmp_path):
    model = thin_layers()
    optimizer = optimizer_of(model)
    recorder = Recorder(tmp_path, optimizer)
    seen = []
    for i in range(20):
        go(model, optimizer, recorder, i, i + 1)
        seen.append([layer.rank for _, layer in optimizer.layers])
    now, changes = None, 0
    for line, ranks in zip(told(tmp_path), seen, strict=True):
        assert line.get("ranks", now) == ranks
        assert ("ranks" in line) == (ranks != now)
        changes += "ranks" in line
        now = ranks
    assert 2 <= changes < 20


def test_spectra_are_those_of_the_weights_and_the_last_step_has_one(tmp_path):
    model, _, recorder = recorded(tmp_path, steps=12)
    recorder.finish()
    lines = told(tmp_path)
    assert [line["step"] for line in lines if "spectra" in line] == [1, 5, 10, 12]
    weights = [model[0].factors().dense(), model[2].factors().dense()]
    for sigma, weight in zip(lines[-1]["spectra"], weights, strict=True):
        values = torch.linalg.svdvals(weight)[: len(sigma)]
        torch.testing.assert_close(
            torch.tensor(sigma, dtype=weight.dtype), values, rtol=1e-4, atol=0
        )
    assert lines[-1]["condition"] == pytest.approx(
        {name: value for name, value in condition_numbers(model).items() if name in NAMES}
    )


def test_a_tucker_kernel_has_two_ranks_and_the_spectrum_of_its_first_mode(tmp_path, draw):
    layer = TuckerConv2d(tucker(7, 5, (3, 3), (3, 2), draw))
    optimizer = rw.Optimizer(layer)
    recorder = Recorder(tmp_path, optimizer)
    layer(torch.randn(2, 5, 4, 4, generator=draw, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    line = recorder.step(1.0)
    assert line["ranks"] == [[3, 2]]
    sigma = torch.linalg.svdvals(layer.kernel().detach().flatten(1))[:3]
    torch.testing.assert_close(
        torch.tensor(line["spectra"][0], dtype=torch.float64), sigma, rtol=1e-4, atol=0
    )
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["layers"][0] | {"name": "layer"} == {
        "name": "layer", "kind": "TuckerConv2d", "shape": [7, 5], "kernel": [3, 3],
        "full": [7, 5], "adapter": False,
    }  # fmt: skip


def test_spectra_thin_out_in_a_long_run():
    from rankwise.report.recorder import _has_spectra

    steps = [step for step in range(1, 20001) if _has_spectra(step, 25)]
    assert steps[:4] == [1, 25, 50, 75]
    assert len(steps) < 150
    late = [b - a for a, b in zip(steps, steps[1:], strict=False)][-20:]
    assert min(late) >= 100


def test_skipped_steps_are_counted_and_no_number_is_lost_to_json(tmp_path):
    _, optimizer, recorder = recorded(tmp_path, steps=6, broken=(2, 3))
    recorder.finish()
    lines = told(tmp_path)
    assert [line.get("skipped") for line in lines] == [None, None, 1, 2, None, None]
    assert [isnan(line["loss"]) for line in lines] == [False, False, True, True, False, False]
    for text in (tmp_path / "history.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert optimizer.skipped == 2


@pytest.mark.parametrize("stop, killed", [(7, 7), (5, 9), (12, 12)])
def test_a_resumed_run_writes_what_a_whole_one_does(tmp_path, stop, killed):
    _, _, whole = recorded(tmp_path / "whole", steps=12)
    whole.finish()
    model = thin_layers()
    optimizer = optimizer_of(model)
    recorder = Recorder(tmp_path / "run", optimizer, 5)
    go(model, optimizer, recorder, 0, stop)
    checkpoint = tmp_path / "checkpoint.safetensors"
    rw.save_training(checkpoint, model=model, optimizer=optimizer, progress={})
    go(model, optimizer, recorder, stop, killed)

    model = thin_layers()
    optimizer = optimizer_of(model)
    rw.load_training(checkpoint, model=model, optimizer=optimizer)
    recorder = Recorder(tmp_path / "run", optimizer, 5)
    assert len(recorder.resume(stop)) == stop
    go(model, optimizer, recorder, stop, 12)
    recorder.finish()
    assert told(tmp_path / "run") == told(tmp_path / "whole")


def test_the_optimizer_may_be_stepped_with_a_closure(tmp_path):
    """As Lightning does: gradients are there only after it."""
    _, _, _ = recorded(tmp_path / "plain", steps=5)
    model = thin_layers()
    optimizer = optimizer_of(model)
    recorder = Recorder(tmp_path / "closure", optimizer, 5)
    for i in range(5):
        x, y = batch(i)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if i % 2 else optimizer.step(closure)
        recorder.step(loss.item())
    assert told(tmp_path / "closure") == told(tmp_path / "plain")


def test_recording_changes_nothing(tmp_path):
    model, _, _ = recorded(tmp_path)
    alone = thin_layers()
    optimizer = optimizer_of(alone)

    class Silent:
        def step(self, loss):
            pass

    go(alone, optimizer, Silent(), 0, 30)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True)
    )


def test_run_json_says_what_trained_and_whether_it_is_done(tmp_path):
    _, optimizer, recorder = recorded(tmp_path, steps=2)
    run = json.loads((tmp_path / "run.json").read_text())
    assert [layer["name"] for layer in run["layers"]] == NAMES
    assert [layer["shape"] for layer in run["layers"]] == [[8, 6], [7, 8]]
    assert run["optimizer"]["rank_rule"] == repr(optimizer.rank_rule)
    assert run["versions"]["torch"] == torch.__version__ and run["machine"]["cores"] >= 1
    assert run["finished"] is False and not (tmp_path / "metrics.json").exists()
    recorder.finish({"accuracy": 0.5})
    after = json.loads((tmp_path / "run.json").read_text())
    assert after == run | {"finished": True}
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"accuracy": 0.5}


def test_after_the_end_nothing_is_measured(tmp_path):
    model, optimizer, recorder = recorded(tmp_path, steps=2)
    recorder.finish()
    before = (tmp_path / "history.jsonl").read_bytes()
    x, y = batch(9)
    (model(x) - y).square().mean().backward()
    optimizer.step()
    assert recorder._before is None
    assert (tmp_path / "history.jsonl").read_bytes() == before


def test_an_earlier_run_is_never_added_to(tmp_path):
    recorded(tmp_path, steps=3)
    before = (tmp_path / "history.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"is of an earlier run: call `resume\(step\)`"):
        recorded(tmp_path, steps=3)
    assert (tmp_path / "history.jsonl").read_bytes() == before


def test_steps_that_are_missing_are_told(tmp_path):
    _, optimizer, _ = recorded(tmp_path, steps=3)
    with pytest.raises(ValueError, match="does not hold steps 1 to 4"):
        Recorder(tmp_path, optimizer).resume(4)


def test_what_cannot_be_recorded_is_refused(tmp_path):
    model = thin_layers()
    with pytest.raises(TypeError, match=r"must be a rankwise\.Optimizer, got AdamW"):
        Recorder(tmp_path, torch.optim.AdamW(model.parameters()))
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        Recorder(tmp_path, optimizer_of(model), every=0)


def test_what_the_guard_has_met_is_in_the_line_of_its_step_and_goes_on_after_resuming(tmp_path):
    def begun():
        model = thin_layers()
        optimizer = optimizer_of(model, guard=rw.check.Guard(every=2, patience=2, rewinds=3))
        return model, optimizer, Recorder(tmp_path, optimizer)

    model, optimizer, recorder = begun()
    with pytest.warns(RuntimeWarning, match="2 steps in a row"):
        go(model, optimizer, recorder, 0, 10, broken=(4, 5))
    (line,) = [line for line in told(tmp_path) if "incidents" in line]
    assert (line["step"], line["incidents"]) == (6, {"rewound": 1})
    other, again, recorder = begun()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    recorder.resume(8)
    assert [line.get("incidents") for line in told(tmp_path)][5:] == [{"rewound": 1}, None, None]
