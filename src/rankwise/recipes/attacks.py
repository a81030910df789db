"""The attacks that the command line knows by name."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rankwise.robust.attack import Attack
from rankwise.robust.auto_attack import FEWEST_CLASSES, AutoAttack
from rankwise.robust.ball import L2
from rankwise.robust.fgsm import FGSM, ScaledFGSM
from rankwise.robust.jitter import Jitter
from rankwise.robust.mixup import MixupAttack
from rankwise.robust.noise import Noise
from rankwise.robust.pgd import PGD


class Named(NamedTuple):
    """An attack, and how a table calls it."""

    title: str
    make: Callable[[], Attack]


ATTACKS: dict[str, Named] = {
    "fgsm": Named("FGSM", FGSM),
    "scaled-fgsm": Named("scaled FGSM", ScaledFGSM),
    "pgd": Named("PGD-20", PGD),
    "jitter": Named("Jitter", Jitter),
    "mixup": Named("Mixup", MixupAttack),
    "noise": Named("noise", Noise),
    "auto": Named("AutoAttack", AutoAttack),
    "fgsm-l2": Named("FGSM, l2", lambda: FGSM(L2())),
    "pgd-l2": Named("PGD-20, l2", lambda: PGD(L2())),
    "noise-l2": Named("noise, l2", lambda: Noise(L2())),
}


def check_classes(names: Sequence[str], classes: int) -> None:
    """ValueError for an attack that needs more classes; otherwise it would tell in its midst."""
    if "auto" in names and classes < FEWEST_CLASSES:
        raise ValueError(
            f"--attacks auto compares the {FEWEST_CLASSES} largest logits, the images have "
            f"{classes} classes; take others"
        )


def budgets(name: str, eps: Sequence[float], eps_l2: Sequence[float]) -> list[float]:
    """Those of the attack's geometry, ascending."""
    return sorted(set(eps_l2 if isinstance(ATTACKS[name].make().ball, L2) else eps))
