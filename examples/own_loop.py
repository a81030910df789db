"""A loop of one's own: a scheduler, TensorBoard, a record for `rankwise report`, and resume.

`python examples/own_loop.py` trains a perceptron of low rank on Fashion-MNIST in seconds on a CPU;
with `--resume` it goes on from its last state, exactly as if it had never stopped.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

import rankwise as rw
from rankwise.recipes.images import read_images, rows_at
from rankwise.recipes.networks import mlp
from rankwise.report import Recorder
from rankwise.report.scalars import scalars

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--output", type=Path, default=Path("runs/own"))
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

torch.manual_seed(0)
images = read_images("fashion-mnist")
net = mlp(classes=10, channels=1, size=28)
rw.factorize_(net, rank=60, init=rw.init.Random(), min_features=16)
rank_rule = rw.Budget(parameters=67_000, every=20, keep=0.9)
optimizer = rw.Optimizer(net, lr=0.03, max_step=0.015, rank_rule=rank_rule)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=300)
parts = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
recorder, state = Recorder(options.output, optimizer), options.output / "state.safetensors"
first = rw.load_training(state, **parts)["step"] if options.resume else 0
if options.resume:
    recorder.resume(first)

with SummaryWriter(options.output / "events") as writer:
    for step in range(first, options.steps):
        rows = rows_at(step, count=len(images.train), batch_size=128, seed=0)
        loss = torch.nn.functional.cross_entropy(net(images.train[rows]), images.labels[rows])
        loss.backward()
        if step % 20 == 0:
            for name, number in scalars(optimizer).items():
                writer.add_scalar(name, number, step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        recorder.step(loss)
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            rw.save_training(state, **parts, progress={"step": step + 1})

with torch.no_grad():
    accuracy = (net(images.test).argmax(1) == images.test_labels).float().mean().item()
recorder.finish({"accuracy": accuracy})
print(f"accuracy {accuracy:.1%}  ranks {[layer.rank for _, layer in optimizer.layers]}")
