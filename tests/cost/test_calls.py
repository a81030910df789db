"""What operations take beside their numbers."""

import pytest
import torch
from torch import nn

from rankwise.cost import calls
from rankwise.cost.calls import clock_of, passes_of_calls
from rankwise.cost.trace import trace


def test_a_pass_is_divided_among_its_operations():
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 3.0
        return now

    net, x = calls._Block().requires_grad_(False), torch.ones(1, calls.WIDTH, requires_grad=True)
    seen = trace(net, lambda: net(x), trains=lambda p: False, layers={})
    # Between the two looks at this clock of a pass there are 3 seconds.
    expected = (3.0 / len(seen.forward), 3.0 / len(seen.backward))
    assert passes_of_calls(torch.device("cpu"), clock) == pytest.approx(expected)
    assert len(seen.forward) > len([m for m in net.modules() if isinstance(m, nn.Module)])


def test_a_call_takes_less_than_a_hundredth_of_a_second():
    device = torch.device("cpu")
    assert all(0 < seconds < 1e-2 for seconds in passes_of_calls(device, clock_of(device)))
