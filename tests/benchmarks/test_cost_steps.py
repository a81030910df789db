"""Steps and bytes of contenders on a model that is small enough to add up by hand."""

import copy
import sys

import pytest
import torch
from torch import nn

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from cost.contenders import ADAPTING, CONTENDERS, FLOOR, REFERENCE, steps_always  # noqa: E402
from cost.footprint import footprint  # noqa: E402
from cost.gate import ratios_of  # noqa: E402
from cost.machine import machine  # noqa: E402
from cost.model import Case, rows_of, times  # noqa: E402
from cost.report import report  # noqa: E402
from cost.steps import StockAdamW, courses  # noqa: E402
from cost.workloads import Workload  # noqa: E402

from cost import pictures  # noqa: E402

FLOAT, RANK, WIDTH, ROWS, LAYERS = 4, 2, 8, 5, 3
MAPS = LAYERS * WIDTH * WIDTH


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def workload():
    torch.manual_seed(0)
    batch = {"x": torch.randn(ROWS, WIDTH)}
    return Workload(Stack(), "", "embed", batch, lambda model, b: model(b["x"]).sum())


def test_the_floor_has_nothing_of_its_own(workload):
    found = footprint(workload, CONTENDERS[FLOOR], RANK, 1)
    assert (found.state, found.gradients, found.trained, found.activations) == (0, 0, 0, 0)
    # The first block's input is there to the end. Beside it: two results of forward, or the
    # gradients of one layer's output and input, with the loss and the gradient of the loss.
    assert found.peak == 3 * ROWS * WIDTH * FLOAT + 2 * FLOAT


def test_the_bytes_of_lora_are_those_of_its_factors(workload):
    found = footprint(workload, CONTENDERS[REFERENCE], RANK, 2)
    factors = LAYERS * 2 * WIDTH * RANK
    assert found.trained == factors
    assert found.gradients == factors * FLOAT
    counters = 2 * LAYERS
    assert found.state == 2 * factors * FLOAT + counters * FLOAT
    # Each layer's input, and that of its second factor.
    assert found.activations == LAYERS * ROWS * (WIDTH + RANK) * FLOAT
    assert found.peak_total - found.peak == (WIDTH * WIDTH + MAPS) * FLOAT


def test_a_footprint_is_counted_the_same_each_time(workload):
    for name in (REFERENCE, ADAPTING, "DoRA"):
        assert len({footprint(workload, CONTENDERS[name], RANK, 2) for _ in range(2)}) == 1


def test_contenders_do_not_touch_the_model_that_they_copy(workload):
    before = copy.deepcopy(workload.model.state_dict())
    courses(workload, {name: CONTENDERS[name] for name in (REFERENCE, ADAPTING)}, RANK, 2, 1)
    after = workload.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def found(workload):
    names = (REFERENCE, FLOOR, ADAPTING, "AdaLoRA", "DoRA")
    return courses(workload, {name: CONTENDERS[name] for name in names}, RANK, 30, 5)


def test_who_costs_the_same_in_each_step_sits_rounds_out(found):
    for name, course in found.items():
        expected = range(30) if steps_always(name) else range(0, 30, 5)
        assert list(course.rounds) == list(expected)


def test_the_ranks_of_the_run_that_is_timed_adapt(found):
    parameters = found[ADAPTING].parameters
    assert parameters[0] == parameters[24] == LAYERS * RANK * (2 * WIDTH + 1)
    assert parameters[-1] <= parameters[0] / 2


def test_only_ours_has_a_stock_step_beside_it(found):
    assert all(s.stock > 0 for s in found[ADAPTING].rounds.values())
    assert all(s.stock == 0 for s in found["DoRA"].rounds.values())


def test_the_reference_is_one_and_the_floor_has_no_overhead(found):
    reference, floor = times(REFERENCE, found), times(FLOOR, found)
    assert reference["to LoRA"] == (1.0, 1.0, 1.0)
    assert reference["to LoRA, whole run"] == reference["overhead"] == 1.0
    assert floor["overhead"] == 0.0 and floor["to frozen"] == 1.0
    assert reference["geometry"] == 0.0


def test_stock_adamw_follows_the_ranks():
    stock = StockAdamW({"a": (6, 4), "b": (3, 5)}, torch.device("cpu"))
    for ranks in ({"a": 2, "b": 1}, {"a": 1, "b": 1}):
        assert stock.seconds(ranks) > 0
        (group,) = stock._optimizer.param_groups
        count = sum(p.numel() for p in group["params"])
        assert count == ranks["a"] * 10 + ranks["b"] * 8


def test_results_become_tables_pictures_and_ratios(workload, found, tmp_path):
    case = Case("Stack", ROWS, WIDTH, RANK, tuple(found))
    rows = rows_of(case, found, workload, footprint_steps=1)
    results = {"machine": machine(torch.device("cpu")), "model": rows}
    pictures.draw(results, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.png"]
    text = report(results)
    assert text.count(f"| {case.label} | ") == 2 * len(found)
    ratios = ratios_of(results)
    assert ratios["time"][f"{case.label}: {ADAPTING}, to LoRA"] == rows[2]["to LoRA"].median
    state = ratios["memory"][f"{case.label}: {ADAPTING}, state to LoRA"]
    assert state == rows[2]["bytes"]["state"] / rows[0]["bytes"]["state"]
    assert rows[2]["bytes after"]["trained"] == found[ADAPTING].parameters[-1]
