"""Small classifiers to attack, inputs for them, and what an attack must leave as it was."""

from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 4


def images(
    rows: int = 12, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Images (rows, 2, 6, 6) in [0, 1] and labels of `CLASSES`, each label in turn."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 2, 6, 6, generator=draw, dtype=torch.float64)
    return x.to(dtype), torch.arange(rows) % CLASSES


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Convolutions, batch norm with statistics of its own, dropout; classifies `images`."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(288, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES),
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2.0)
    return net


def linear(features: int = 5, classes: int = 2, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(features, classes, dtype=torch.float64)


def trained(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A tanh network that has learnt which of its inputs in [0, 1] is the largest."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(200, CLASSES, generator=draw, dtype=torch.float64)
    y = x.argmax(1)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(CLASSES, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, x, y


class Output(nn.Module):
    """A classifier that is a function of the sums of the channels, twice."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        sums = x.flatten(2).sum(2)
        return self.function(torch.cat([sums, 2 * sums], 1))


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that an attack might change in a model, and in torch's own generator."""
    return {
        "modes": [m.training for m in model.modules()],
        "trained": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": {name: t.clone() for name, t in model.state_dict().items()},
        "random": torch.random.get_rng_state(),
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)
