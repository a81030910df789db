"""Clipping by the tangent gradient's own norm, which takes Lightning's manual optimization.

`python examples/lightning_manual.py` trains a convolutional network of low rank on Fashion-MNIST,
in half a minute on a CPU.
"""

import argparse

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import rankwise as rw
from rankwise.integrations.lightning import RankwiseCallback
from rankwise.recipes.images import read_images
from rankwise.recipes.networks import lenet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--output", default="runs/lightning-manual")
options = parser.parse_args()


class Classifier(L.LightningModule):
    """LeNet-5 of low rank, whose training step is a loop of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = lenet(classes=10, channels=1, size=28)
        rw.factorize_(self.net, rank=16, init=rw.init.Random(), min_features=16)

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.clip_gradient_(max_norm=1.0)
        optimizer.step()
        self.lr_schedulers().step()
        return loss

    def validation_step(self, batch, index):
        right = self.net(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", right.float().mean())

    def configure_optimizers(self):
        rule = rw.Tolerance(rtol=0.1, every=20)
        optimizer = rw.Optimizer(self, lr=0.08, max_step=0.04, rank_rule=rule)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, options.steps)]


images = read_images("fashion-mnist")
model = Classifier()
trainer = L.Trainer(
    max_steps=options.steps, accelerator="cpu", default_root_dir=options.output, logger=False,
    callbacks=[RankwiseCallback(record=f"{options.output}/record")],
)  # fmt: skip
train = TensorDataset(images.train, images.labels)
trainer.fit(model, DataLoader(train, batch_size=64, shuffle=True))
test = TensorDataset(images.test, images.test_labels)
trainer.validate(model, DataLoader(test, batch_size=1000))
print("ranks", [layer.ranks for _, layer in trainer.optimizers[0].layers])
