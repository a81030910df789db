"""Healing by what the original says: the loss that ties a compressed model to its teacher."""

from torch import Tensor
from torch.nn.functional import kl_div


def distillation_loss(logits: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(logits / T))`, mean over rows (..., classes).

    Hinton, Vinyals and Dean (2015). The factor keeps the size of gradients at any temperature > 0.
    """
    if not temperature > 0:
        raise ValueError(
            f"`distillation_loss(temperature=...)` must be positive, got {temperature}"
        )
    student, target = (
        (t.flatten(0, -2).float() / temperature).log_softmax(-1) for t in (logits, teacher.detach())
    )
    return temperature**2 * kl_div(student, target, reduction="batchmean", log_target=True)
