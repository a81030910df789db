"""What a forward pass in training changes in a model."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that a forward pass in training changes: those of batch and instance norms."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }
