"""A user's script with `transformers.Trainer`, for torchrun and for processes of tests."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer

import rankwise as rw
from loops import classifier, ranks, trainer_of
from rankwise.integrations.transformers import RankwiseCallback

STEPS = 6


class InOrder(Trainer):
    """Rows in their order, and the mean over batches, so that any division of 16 rows is one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # BERT takes any keyword, from which `Trainer` concludes that it divides its loss itself.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trained(
    folder: Path, world: int, *, prepare: bool = True, head: bool = True, **options: Any
) -> tuple[list[int], dict[str, Tensor], list[dict[str, float]], Any]:
    """Ranks, weights, the log, and what was sent; every step sees 16 rows, on any number."""
    resume = options.pop("resume", None)
    model = classifier(dropout=0.0).double()
    model.classifier.requires_grad_(head)
    replicas = rw.distributed.prepare(model) if prepare else None
    trainer = trainer_of(
        model, folder, kind=InOrder, per_device_train_batch_size=8 // world,
        gradient_accumulation_steps=2, max_steps=STEPS, callbacks=[RankwiseCallback()], **options,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    state = {name: t.detach().clone() for name, t in model.state_dict().items()}
    log = [line for line in trainer.state.log_history if "loss" in line]
    return ranks(model), state, log, replicas and replicas.traffic


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    found = trained(folder, world, save_strategy="steps", save_steps=4)
    torch.save(found, folder / f"found-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
