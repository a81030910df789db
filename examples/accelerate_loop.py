"""A loop with accelerate: accumulation, clipping, mixed precision, and a state to go on from.

`python examples/accelerate_loop.py` trains a perceptron of low rank on Fashion-MNIST in seconds on
a CPU; with `--resume` it goes on from its last state, exactly.
"""

import argparse
from itertools import islice

import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, TensorDataset

import rankwise as rw
from rankwise.recipes.images import read_images
from rankwise.recipes.networks import mlp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--output", default="runs/accelerate")
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=2)
images = read_images("fashion-mnist")
net = mlp(classes=10, channels=1, size=28)
rw.factorize_(net, rank=60, init=rw.init.Random(), min_features=16)
rank_rule = rw.Budget(parameters=67_000, every=20, keep=0.9)
optimizer = rw.Optimizer(net, lr=0.03, max_step=0.015, rank_rule=rank_rule)
# A seed of its own lets the loader draw the same order after a restart.
loader = DataLoader(
    TensorDataset(images.train, images.labels), batch_size=64, shuffle=True,
    generator=torch.Generator().manual_seed(0),
)  # fmt: skip
net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
if options.resume:
    accelerator.load_state(f"{options.output}/state")

taken = 2 * optimizer.optimizer.steps
for x, y in islice(skip_first_batches(loader, taken), 2 * options.steps - taken):
    with accelerator.accumulate(net):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
accelerator.save_state(f"{options.output}/state")

with torch.no_grad():
    accuracy = (net(images.test).argmax(1) == images.test_labels).float().mean()
ranks = [layer.rank for _, layer in optimizer.optimizer.layers]
print(f"step {optimizer.optimizer.steps}  accuracy {accuracy:.1%}  ranks {ranks}")
