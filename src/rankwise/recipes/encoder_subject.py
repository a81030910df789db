"""A sentence encoder: it is to give the embeddings that it gave."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.compress.fisher import sampled_square_error
from rankwise.recipes.classifier import block_maps, encode
from rankwise.recipes.examples import Dataset, Example
from rankwise.recipes.subject import Batch, Subject, to_device
from rankwise.recipes.tables import read_text

PROBE_ROWS = 1500
PROBE_STEPS = 60
PROBE_DECAY = 1e-3


class Embedder(nn.Module):
    """Mean over tokens of an encoder's last states, of length one; float32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0].float()
        weights = attention_mask.unsqueeze(-1).float()
        pooled = (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        return nn.functional.normalize(pooled, dim=-1)


class EncoderSubject(Subject):
    """An encoder and texts; with labels, a linear probe on the original's embeddings too."""

    distill = 1.0

    def __init__(
        self, name: str, encoder: nn.Module, tokenizer: Any, data: Dataset, max_length: int
    ) -> None:
        self.name, self.model = name, Embedder(encoder).eval()
        self.select = [f"encoder.{layer}" for layer in block_maps(encoder)]
        self.tokenizer, self.data, self.max_length = tokenizer, data, max_length
        self.rows = len(data.train)
        self._original = self._embeddings(self.model, data.held_out)
        self._probe = self._fitted_probe() if len(data.classes) > 1 else None

    def batch(self, rows: Sequence[int]) -> Batch:
        return self._encoded([self.data.train[i] for i in rows])

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        y: Tensor = model(batch["input_ids"], batch["attention_mask"])
        return y

    def sampled_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return sampled_square_error(self.output(model, to_device(batch, model)))

    def reference(self, original: nn.Module, batch: Batch) -> Tensor | None:
        return self.output(original, batch)

    def loss(self, output: Tensor, reference: Tensor | None, batch: Batch) -> Tensor:
        """There are no labels: the distance to the original is all there is."""
        assert reference is not None
        return self.distance(output, reference)

    def distance(self, output: Tensor, original: Tensor) -> Tensor:
        """`1 - cos`, half the square distance of embeddings of length one."""
        return 1.0 - (output * original).sum(-1).mean()

    def measure(self, model: nn.Module, rows: int | None = None) -> dict[str, float]:
        examples = self.data.held_out[:rows]
        found = self._embeddings(model, examples)
        result = {"loss": float(self.distance(found, self._original[:rows]))}
        if self._probe is not None:
            labels = torch.tensor([example.label for example in examples])
            said = (found @ self._probe).argmax(1)
            result["probe accuracy"] = float((said == labels).float().mean())
        return result

    def limit(self, before: float, tolerance: float) -> float:
        """An encoder is no distance from itself: here the tolerance is the distance."""
        return tolerance

    def inner(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, Embedder)
        return model.encoder

    def save_beside(self, folder: Path) -> None:
        config: Any = self.inner(self.model).config
        config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def example(self, rows: int) -> Batch:
        return self._encoded(self.data.held_out[:rows])

    def fingerprint(self) -> str:
        text = json.dumps([self.data.train, self.data.held_out])
        return hashlib.sha256(text.encode()).hexdigest()

    def _encoded(self, examples: Sequence[Example]) -> Batch:
        encoded = encode(self.tokenizer, examples, self.max_length)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def _embeddings(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        training = model.training
        model.eval()
        # Batches of similar length need little padding.
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].text))
        found: list[Tensor] = [torch.empty(0)] * len(examples)
        for start in range(0, len(order), 50):
            places = order[start : start + 50]
            batch = to_device(self._encoded([examples[i] for i in places]), model)
            for i, row in zip(places, self.output(model, batch).cpu(), strict=True):
                found[i] = row
        model.train(training)
        return torch.stack(found)

    def _fitted_probe(self) -> Tensor:
        """Logistic regression on the original's embeddings, (width, classes)."""
        examples = self.data.train[:PROBE_ROWS]
        x, y = self._embeddings(self.model, examples), torch.tensor([e.label for e in examples])
        W = torch.zeros(x.shape[1], len(self.data.classes), requires_grad=True)
        optimizer = torch.optim.LBFGS([W], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(x @ W, y) + PROBE_DECAY * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return W.detach()


def text_rows(path: Path) -> list[str]:
    """The lines of a text file that hold something.

    Raises FileNotFoundError or ValueError.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line]
    if len(lines) < 2:
        raise ValueError(f"{path} holds {len(lines)} texts, one a line; a few hundred are needed")
    return lines
