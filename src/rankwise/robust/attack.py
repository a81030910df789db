"""What all attacks have in common: the call, and what is promised about the model."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_batch, check_eps, check_inside, checked_bounds
from rankwise.robust.ball import Ball
from rankwise.robust.logits import check_labels, class_count
from rankwise.robust.region import Bounds, Region
from rankwise.robust.still import still


class Attack(ABC):
    """A way to change inputs a little so that a classifier errs.

    Attributes:
        ball: what "a little" means; `eps` is its radius.
    """

    ball: Ball

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float,
        *,
        bounds: Bounds = (0.0, 1.0),
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Adversarial inputs (rows, ...) for `x`, detached, of its type and device.

        The model evaluates (no dropout, no batch statistics) with its parameters frozen. Afterwards
        modes, `requires_grad`, gradients and buffers are what they were, and so is the state of
        torch's own generators. Inputs whose gradient is zero or not finite do not move along it.

        Args:
            model: takes (rows, ...) to logits (rows, classes), two classes at least, each row by
                itself.
            x: clean inputs (rows, ...), floating, on the device of the model.
            y: their class labels (rows,), integers in [0, classes).
            eps: how far from `x`, >= 0, up to rounding; in the unit of `x` as the model takes it.
                Pixel values in [0, 1] need 8/255 for the usual l_inf attack; where the model takes
                normalised inputs, divide by the deviation, or wrap it in `Normalised`.
            bounds: (lowest, highest) value of any input, kept to; None for inputs without any, such
                as normalised ones.
            generator: of the attack's random numbers, on the CPU. None: a new one of seed 0 in
                every call, so that calls repeat; give one for fresh numbers each time.

        Raises:
            TypeError: for arguments of the wrong type.
            ValueError: for values out of range, shapes or labels that do not fit; the latter are
                compared with the logits of one row.
        """
        check_batch(model, x, y)
        radius = check_eps(eps)
        limits = checked_bounds(bounds)
        check_inside(x, limits)
        draw = torch.Generator().manual_seed(0) if generator is None else generator
        # Tensors made in inference mode take no part in a backward pass; copies made outside do.
        with torch.inference_mode(False), torch.no_grad(), still(model):
            clean, labels = x.detach().clone(), y.detach().clone().long()
            check_labels(labels, class_count(model, clean))
            if radius == 0.0:
                return clean
            region = Region(clean, radius, self.ball, limits)
            return self._perturb(model, labels, region, draw)

    @abstractmethod
    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        """Inputs of `region`, detached; all arguments are checked, the radius is positive."""
