"""Darcy flow by a network of low rank: `python examples/darcy.py` takes a minute or two on a CPU.

Learns the map from a permeability to the pressure, `-div(a grad u) = 1`, from 800 solved examples
with a tenth of the weights of the dense network, and tells the relative L2 error on others.
"""

import argparse

import torch

import rankwise as rw
from rankwise.recipes.darcy import Flows, Scale, SolutionOperator, darcy, mirrored, relative_error

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--part", type=float, default=0.1, help="of the dense network's weights")
options = parser.parse_args()

torch.manual_seed(0)
data = darcy()
model = SolutionOperator(Scale.of(data.train.u))
dense_weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)

# Every matrix becomes U S V^T, with twice the parameters that are to be left in the end.
rw.factorize_(model, rank=29, init=rw.init.Random())
biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
optimizer = rw.Optimizer(
    model,
    lr=0.08,
    max_step=0.04,
    rank_rule=rw.Budget(parameters=int(options.part * dense_weights), every=25, keep=0.9),
    groups=[{"params": biases, "lr": 4e-3}],
)
warmup = max(1, options.steps // 10)
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer,
    lambda k: min((k + 1) / warmup, (options.steps - k) / max(1, options.steps - warmup)),
)

for step in range(options.steps):
    rows = torch.randint(len(data.train.a), (64,))
    batch = mirrored(Flows(data.train.a[rows], data.train.u[rows]), symmetry=step % 8)
    loss = relative_error(model(batch.a), batch.u).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
    if (step + 1) % 50 == 0:
        print(f"step {step + 1}  loss {loss:.3f}  ranks {[x.rank for _, x in optimizer.layers]}")

small = rw.shrink(model)  # plain torch, two thin layers in place of each
weights = sum(p.numel() for p in small.parameters() if p.ndim == 2)
print(f"{weights:,} of {dense_weights:,} weights")
for name, flows in (("held-out", data.held_out), ("test", data.test)):
    with torch.no_grad():
        print(f"{name} relative L2 error: {relative_error(small(flows.a), flows.u).mean():.1%}")
