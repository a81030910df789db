"""Small classifiers in float64, data for them, and how steep they are."""

import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.numerics.init import truncated_svd


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, rank: int = 0, seed: int = 0):
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n, m), activation()]
    model = nn.Sequential(*layers[:-1]).double()
    for place, layer in enumerate(model):
        if rank and isinstance(layer, nn.Linear):
            W = layer.weight.detach()
            f = truncated_svd(W, min(rank, *W.shape))
            model[place] = rw.LowRankLinear(f, bias=layer.bias)
    return model


def cnn(*, stride: int = 1, dilation: int = 1, groups: int = 1, pool: nn.Module, seed: int = 0):
    torch.manual_seed(seed)
    padding = dilation
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=padding, dilation=dilation, stride=stride),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        pool,
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=groups), nn.ReLU()),
    )
    size = body(torch.zeros(2, 2, 8, 8)).flatten(1).shape[1]
    head = [nn.Flatten(), nn.Linear(size, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    model = nn.Sequential(body, *head).double()
    randomise_norms_(model)
    return model.eval()


def randomise_norms_(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


def fitted(model: nn.Module, x: Tensor, y: Tensor, steps: int = 150) -> nn.Module:
    optimizer = rw.Optimizer(model, lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def clouds(rows: int, size: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, size, generator=draw, dtype=torch.float64)
    y = torch.arange(rows) % classes
    return centres[y] + 0.5 * torch.randn(rows, size, generator=draw, dtype=torch.float64), y


def steepest(model: nn.Module, x: Tensor) -> float:
    """The largest norm of the Jacobian at the rows of `x`."""
    jacobians = [
        torch.autograd.functional.jacobian(lambda row: model(row).flatten(), row[None]).flatten(1)
        for row in x
    ]
    return max(float(torch.linalg.matrix_norm(J, 2)) for J in jacobians)
