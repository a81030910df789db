"""Short trials of the numerics on this machine, each from a seed to a finding.

What is on trial can be given, so that a trial itself can be tried on something that is broken.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.check.finding import Finding, fault, fine
from rankwise.io.training import load_training, save_training
from rankwise.nn.linear import LowRankLinear
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.orth import orthonormalise
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.tolerance import Tolerance
from rankwise.surgery.adapt import adapt_

REINSTALL = (
    "install another build of torch (its own wheels bring a LAPACK that works), and report it"
)
MAX_DEFECT = 1e-5
MAX_ERROR = 1e-10
STEPS, HALF = 20, 10
FALL = 0.5
RATE = 0.1


def trial_findings(seed: int) -> list[Finding]:
    """All trials; they take a second or two."""
    with torch.random.fork_rng(devices=[]):
        return [lapack(seed), gradients(seed), descent(seed), resume(seed)]


def lapack(seed: int, basis: Callable[[Tensor], Tensor] = orthonormalise) -> Finding:
    """QR and SVD in float32 on matrices that break careless kernels."""
    name = "lapack"
    worst, where = 0.0, ""
    for what, X in _hard_matrices(seed).items():
        try:
            P, _, Qh = torch.linalg.svd(X, full_matrices=False)
            bases = (basis(X), P, Qh.mT)
        except RuntimeError as error:
            return fault(name, f"fails on a {what} matrix: {error}", REINSTALL)
        # A NaN compares as false; as infinite it is the worst.
        defect = max(float(orthonormality_defect(Q).nan_to_num(float("inf"))) for Q in bases)
        if defect >= worst:
            worst, where = defect, what
    seen = f"max |Q^T Q - I| = {worst:.1e} over QR and SVD of hard matrices"
    if not worst <= MAX_DEFECT:
        return fault(name, f"{seen}, worst: {where}", REINSTALL)
    return fine(name, seen)


def gradients(seed: int, kind: type[LowRankLinear] = LowRankLinear) -> Finding:
    """The low-rank layer's own backward pass against autograd through a dense weight."""
    name = "gradients"
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    f = truncated_svd(normal(7, 5), 3)
    base = nn.Linear(5, 7, dtype=torch.float64)
    layer = kind(f, base=base, scale=0.5)
    x, target = normal(9, 5), normal(9, 7)
    (layer(x) - target).square().sum().backward()
    W = (base.weight + 0.5 * f.dense()).detach().requires_grad_()
    (x @ W.mT + base.bias.detach() - target).square().sum().backward()
    assert W.grad is not None
    G = 0.5 * W.grad
    expected = Factors(G @ f.V, f.U.mT @ G @ f.V, G.mT @ f.U)
    pairs = zip(layer.factor_parameters(), expected, strict=True)
    errors = [torch.dist(p.grad, e) / e.norm() for p, e in pairs if p.grad is not None]
    error = max(map(float, errors), default=float("inf"))
    seen = f"relative error {error:.1e} to a dense layer's"
    return fine(name, seen) if error <= MAX_ERROR else fault(name, seen, REINSTALL)


def descent(seed: int, lr: float = RATE) -> Finding:
    """A short training that cannot fail where the library works."""
    name = "descent"
    model, optimizer = _learner(seed, lr)
    losses = _steps(model, optimizer, seed, STEPS)
    seen = f"loss {losses[0]:.3g} to {losses[-1]:.3g} in {STEPS} steps"
    if not losses[-1] < FALL * losses[0]:
        return fault(name, seen, REINSTALL)
    return fine(name, seen)


def resume(seed: int, load: Callable[..., Any] = load_training) -> Finding:
    """A training that is saved, read and continued ends where one without a pause does."""
    name = "resume"
    through, optimizer = _learner(seed)
    _steps(through, optimizer, seed, HALF)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "state.safetensors"
            save_training(file, model=through, optimizer=optimizer, progress={"step": HALF})
            again, fresh = _learner(seed)
            load(file, model=again, optimizer=fresh)
    except OSError as error:
        return fault(
            name, f"no temporary file can be written: {error}", "name a writable folder in TMPDIR"
        )
    _steps(through, optimizer, seed, HALF)
    _steps(again, fresh, seed, HALF)
    pairs = zip(through.parameters(), again.parameters(), strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        return fault(name, "a resumed training differs from one without a pause", REINSTALL)
    return fine(name, f"exact after {HALF} and {HALF} steps")


def _hard_matrices(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    P, Q = (torch.linalg.qr(torch.randn(k, 8, generator=draw))[0] for k in (60, 8))
    one = torch.randn(60, 1, generator=draw)
    return {
        "graded": P @ torch.diag(torch.logspace(0, -12, 8)) @ Q.mT,
        "rank-deficient": torch.cat([one, one, one, P[:, :5]], dim=1),
        "zero": torch.zeros(60, 8),
        "tiny": 1e-30 * P,
        "repeated": P @ Q.mT,
    }


def _learner(seed: int, lr: float = RATE) -> tuple[nn.Sequential, Optimizer]:
    """A small network with adapters, and its optimizer with ranks that move."""
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / 4)
    adapt_(model, rank=2, seed=seed)
    optimizer = Optimizer(model, lr=lr, max_step=RATE, rank_rule=Tolerance(rtol=0.1, every=5))
    return model, optimizer


def _steps(model: nn.Module, optimizer: Optimizer, seed: int, count: int) -> list[float]:
    draw = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(64, 12, generator=draw)
    y = torch.stack([x[:, i] + x[:, i + 1] for i in range(10)], dim=1)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
