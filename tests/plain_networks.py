"""Small models that together have layers of every kind; without rankwise, for a process without."""

import torch
from torch import nn


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.sequence = nn.Conv1d(6, 9, 3, stride=2, padding=1, dilation=2)
        self.norm = nn.BatchNorm1d(9)
        self.image = nn.Conv2d(9, 8, (3, 2), stride=(1, 2), padding="valid", bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, groups=8, padding=1)

    def forward(self, x):
        z = self.norm(self.sequence(x))
        return self.grouped(self.image(z.unflatten(-1, (4, -1))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(13, 8, padding_idx=0)
        self.hidden = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8, bias=False)])
        self.out = nn.Linear(8, 13)
        self.out.weight = self.table.weight

    def forward(self, index):
        x = self.table(index)
        for layer in (*self.hidden, self.hidden[0]):
            x = layer(x).tanh()
        return self.out(x)


def networks():
    """A model of each kind by name, and the shape of its input; None for indices."""
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 24, batch_first=True)
    return {
        "linear": (nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 2)), (3, 12)),
        "convolutions": (Convolutions(), (2, 6, 34)),
        "tied": (Tied(), None),
        "transformer": (nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (2, 5, 8)),
    }


SELECT = {"transformer": ["linear1", "linear2"]}
"""What is low rank in models that would keep a class of rankwise otherwise."""


def network(name, draw):
    """A model in evaluation mode after one batch, and an input."""
    model, shape = networks()[name]
    x = torch.randint(0, 13, (3, 7), generator=draw) if shape is None else torch.randn(shape)
    model(x)
    return model.eval(), x
