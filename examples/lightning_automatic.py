"""A perceptron of low rank on Fashion-MNIST, by Lightning.

`python examples/lightning_automatic.py` takes seconds on a CPU; `rankwise report` draws its record.
"""

import argparse

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import rankwise as rw
from rankwise.integrations.lightning import RankwiseCallback
from rankwise.recipes.images import read_images
from rankwise.recipes.networks import mlp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--output", default="runs/lightning")
options = parser.parse_args()


class Classifier(L.LightningModule):
    """Every layer of 16 rows and columns or more is of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(classes=10, channels=1, size=28)
        rw.factorize_(self.net, rank=60, init=rw.init.Random(), min_features=16)

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        right = self.net(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", right.float().mean(), prog_bar=True)

    def configure_optimizers(self):
        rank_rule = rw.Budget(parameters=67_000, every=20, keep=0.9)
        optimizer = rw.Optimizer(self, lr=0.03, max_step=0.015, rank_rule=rank_rule)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


images = read_images("fashion-mnist")
model = Classifier()
trainer = L.Trainer(
    max_steps=options.steps, accelerator="cpu", default_root_dir=options.output, logger=False,
    callbacks=[RankwiseCallback(record=f"{options.output}/record")],
)  # fmt: skip
trainer.fit(
    model, DataLoader(TensorDataset(images.train, images.labels), batch_size=128, shuffle=True)
)
tests = DataLoader(TensorDataset(images.test, images.test_labels), batch_size=1000)
trainer.validate(model, tests)
print("ranks", [layer.rank for _, layer in trainer.optimizers[0].layers])
