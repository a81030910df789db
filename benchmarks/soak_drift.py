"""What rounding alone does to one low-rank matrix over many steps.

Still: at a rate of zero nothing may move it, while gradients of pure noise have its bases
augmented, its rank grown, its spectrum taken and cut, in every step. Twins: one in float32 and one
in float64 approximate the same matrix from noisy gradients, each from its own weight.
"""

from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw

ROWS, COLUMNS, RANK = 48, 40, 6
NOISE = 0.05
"""Size of the gradients' noise, relative to the matrix that is sought."""


def factored(seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.float64))
    rw.factorize_(model, rank=RANK)
    return model.to(dtype)


def weight(model: nn.Module) -> Tensor:
    """`U S V^T`, multiplied in float64."""
    U, S, V = (t.detach().double() for t in model[0].factors())
    return U @ S @ V.mT


def step_along_(model: nn.Module, optimizer: rw.Optimizer, G: Tensor) -> None:
    """One step with the gradient `G` (m, n) of the weight."""
    dtype = model[0].U.dtype
    (model(torch.eye(COLUMNS, dtype=dtype)).mT * G.to(dtype)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def relative(X: Tensor, to: Tensor) -> float:
    return ((X - to).norm() / to.norm()).item()


def still(steps: int, seed: int, every: int) -> dict[str, Any]:
    """`||W - W_0|| / ||W_0||` along the steps."""
    model = factored(seed, torch.float32)
    # Directions that noise brought have singular values of zero, up to rounding.
    rule = rw.Tolerance(rtol=1e-4, rest=0.0)
    optimizer = rw.Optimizer(model, lr=0.0, rank_rule=rule, turns=1)
    noise = torch.Generator().manual_seed(seed)
    start, drift, ranks = weight(model), [], set()
    for step in range(1, steps + 1):
        step_along_(model, optimizer, torch.randn(ROWS, COLUMNS, generator=noise))
        ranks.add(model[0].rank)
        if step % every == 0:
            drift.append({"step": step, "drift": relative(weight(model), start)})
    return {"samples": drift, "ranks": sorted(ranks)}


def twins(steps: int, seed: int, every: int) -> dict[str, Any]:
    """`||W_32 - W_64|| / ||W_64||` along the steps, and how far both are from what they seek.

    The noise is the same for both. Their rank is fixed: where it may change, a rounding can decide
    a cut.
    """
    draw = torch.Generator().manual_seed(seed)
    target = _steep(draw)
    models = [factored(seed, dtype) for dtype in (torch.float32, torch.float64)]
    optimizers = [rw.Optimizer(model) for model in models]
    size = NOISE * target.norm() / (ROWS * COLUMNS) ** 0.5
    samples = []
    for step in range(1, steps + 1):
        noise = size * torch.randn(ROWS, COLUMNS, generator=draw, dtype=torch.float64)
        for model, optimizer in zip(models, optimizers, strict=True):
            step_along_(model, optimizer, weight(model) - target + noise)
        if step % every == 0:
            single, double = map(weight, models)
            samples.append(
                {
                    "step": step,
                    "gap": relative(single, double),
                    "error": relative(double, target),
                    "defect": max(rw.check.orthonormality(models[0]).values()),
                }
            )
    return {"samples": samples}


def _steep(draw: torch.Generator) -> Tensor:
    """A matrix (m, n) whose singular values fall by half from one to the next."""
    P, sigma, Qh = torch.linalg.svd(
        torch.randn(ROWS, COLUMNS, generator=draw, dtype=torch.float64), full_matrices=False
    )
    return P * 0.5 ** torch.arange(len(sigma), dtype=torch.float64) @ Qh
