"""An image classifier: it is to go on telling classes apart."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from rankwise.compress.distill import distillation_loss
from rankwise.compress.fisher import sampled_cross_entropy
from rankwise.io.atomic import write_text
from rankwise.io.tensor_file import read_tensors
from rankwise.recipes.comparison import score
from rankwise.recipes.images import Images
from rankwise.recipes.subject import Batch, Subject, to_device


class ImageSubject(Subject):
    """A classifier and images with labels."""

    select = None
    curve_rows = 3000

    def __init__(self, name: str, model: nn.Module, data: Images) -> None:
        self.name, self.model, self.data = name, model.eval(), data
        self.rows = len(data.train)

    def batch(self, rows: Sequence[int]) -> Batch:
        return {"x": self.data.train[list(rows)], "labels": self.data.labels[list(rows)]}

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        y: Tensor = model(batch["x"])
        return y

    def sampled_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return sampled_cross_entropy(self.output(model, to_device(batch, model)))

    def loss(self, output: Tensor, reference: Tensor | None, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output.float(), batch["labels"])

    def distance(self, output: Tensor, original: Tensor) -> Tensor:
        return distillation_loss(output, original)

    def measure(self, model: nn.Module, rows: int | None = None) -> dict[str, float]:
        part = self.data._replace(
            test=self.data.test[:rows], test_labels=self.data.test_labels[:rows]
        )
        return score(model, part)._asdict()

    def example(self, rows: int) -> Tensor:
        return self.data.test[:rows]

    def save_beside(self, folder: Path) -> None:
        write_text(folder / "labels.json", json.dumps(list(self.data.classes)) + "\n")

    def fingerprint(self) -> str:
        parts = (self.data.train, self.data.labels, self.data.test, self.data.test_labels)
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in parts)).hexdigest()


def load_weights_(model: nn.Module, path: Path) -> None:
    """Put trained weights into a classifier.

    Raises FileNotFoundError or ValueError, naming what does not fit.
    """
    tensors = read_tensors(path).tensors
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            where = "the file" if name not in tensors else "the model"
            raise ValueError(f"{path}: {where} has no {name!r}")
        if own[name].shape != tensors[name].shape:
            raise ValueError(
                f"{path}: {name!r} has shape {tuple(tensors[name].shape)}, the model's has "
                f"{tuple(own[name].shape)}"
            )
    model.load_state_dict(tensors)
