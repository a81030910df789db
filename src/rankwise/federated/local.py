"""What a client computes: gradients over its data, and steps of gradient descent."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankwise.federated.message import Arrays
from rankwise.federated.outline import check_not_merged, named_tensors
from rankwise.federated.samples import Batch, Samples
from rankwise.nn.low_rank import low_rank_layers
from rankwise.nn.resize import set_factor_
from rankwise.numerics.given import check_loss

Loss = Callable[..., Tensor]
"""`loss(model, *batch)`, the mean over the samples of the batch, a 0-dim tensor."""


class Local:
    """Model, loss and data of one client in one round.

    What autograd finds for factors are the slots of their layer: `G V` for `U`, `G^T U` for `V`
    and `U^T G V` for `S`, where `G` is the gradient of `U S V^T`.
    """

    def __init__(self, model: nn.Module, loss: Loss, data: Samples, round: int) -> None:
        self.model, self.loss, self.data, self.round = model, loss, data, round
        self._tensors = named_tensors(model)

    def put(self, arrays: Arrays) -> None:
        """Give the model these values; factors may change their shape."""
        put_(self.model, arrays)

    def values(self, names: Iterable[str]) -> Arrays:
        """Copies of what the model has now."""
        return {n: self._tensors[n].detach().cpu().clone() for n in names}

    def gradient(self, names: Sequence[str], count: int | None) -> Arrays:
        """The mean gradient over all samples, or over `count` batches where these are fewer."""
        if count is None or count >= self.data.pass_length:
            batches = self.data.whole()
        else:
            batches = self.data.batches(count, self.round, "G")
        total = [torch.zeros_like(self._tensors[n], dtype=torch.float64) for n in names]
        seen = 0
        with self._training(names):
            for batch in batches:
                size = batch[0].shape[0]
                for added, slope in zip(total, self._slopes(names, batch), strict=True):
                    added.add_(slope, alpha=size)
                seen += size
        means = zip(names, total, strict=True)
        return {n: (t / seen).to(self._tensors[n].dtype).cpu() for n, t in means}

    def descend(self, names: Sequence[str], steps: int, lr: float, drift: Arrays) -> None:
        """`steps` times `w <- w - lr (g + drift)`, where `g` is the gradient on a batch."""
        targets = [self._tensors[n] for n in names]
        shifts = [drift.get(n, torch.zeros(())).to(self._tensors[n].device) for n in names]
        with self._training(names):
            for batch in self.data.batches(steps, self.round):
                slopes = self._slopes(names, batch)
                for target, slope, shift in zip(targets, slopes, shifts, strict=True):
                    target.detach().sub_(slope + shift, alpha=lr)

    def _slopes(self, names: Sequence[str], batch: Batch) -> list[Tensor]:
        targets = [self._tensors[n] for n in names]
        device = targets[0].device
        loss = self.loss(self.model, *(t.to(device) for t in batch))
        check_loss("loss", loss)
        slopes = torch.autograd.grad(loss, targets, allow_unused=True)
        return [
            torch.zeros_like(t) if g is None else g for t, g in zip(targets, slopes, strict=True)
        ]

    @contextmanager
    def _training(self, names: Sequence[str]) -> Iterator[None]:
        """Only these train, for a core between fixed bases need not be square."""
        before = [(p, p.requires_grad) for p in self.model.parameters()]
        wanted = {id(self._tensors[n]) for n in names}
        try:
            for p, _ in before:
                p.requires_grad_(id(p) in wanted)
            yield
        finally:
            for p, trained in before:
                p.requires_grad_(trained)


@torch.no_grad()
def put_(model: nn.Module, arrays: Arrays) -> None:
    """Give parameters and statistics these values; factors may change their shape.

    ValueError for a model that was merged meanwhile: its outputs would not follow its factors.
    """
    for name, layer in low_rank_layers(model).items():
        check_not_merged(name, layer)
    tensors = named_tensors(model)
    for name, value in arrays.items():
        target = tensors[name]
        if isinstance(target, nn.Parameter) and target.shape != value.shape:
            path, _, own_name = name.rpartition(".")
            set_factor_(model.get_submodule(path), own_name, value)
        else:
            target.copy_(value)
