"""Images as an attacker would show them, for a network to train on."""

from collections.abc import Callable

from torch import Tensor, nn

from rankwise.recipes.images import Images
from rankwise.robust.attack import Attack
from rankwise.robust.fgsm import FGSM
from rankwise.robust.normalised import Normalised
from rankwise.robust.pgd import PGD

Changed = Callable[[nn.Module, Tensor, Tensor], Tensor]


def adversary(data: Images, eps: float, steps: int) -> Changed:
    """From a network, scaled images and labels to the images that it trains on.

    Each pixel, in [0, 1], is moved by at most `eps` against the network as it is: by the sign of
    one gradient (Goodfellow et al., 2015) or by `steps` of PGD (Madry et al., 2018). With 0, images
    stay.
    """
    attack: Attack = FGSM() if steps == 1 else PGD(steps=steps)

    def changed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if eps == 0.0:
            return x
        seen = Normalised(model, data.mean, data.deviation).to(x.device)
        shown = attack.perturb(seen, data.pixels(x), y, eps)
        return (shown - seen.mean.view(-1, 1, 1)) / seen.deviation.view(-1, 1, 1)

    return changed
