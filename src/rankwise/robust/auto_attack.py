"""AutoAttack, by way of torchattacks: the attacks that robustness is reported with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_ball, check_count
from rankwise.robust.attack import Attack
from rankwise.robust.ball import L2, Ball, Linf
from rankwise.robust.logits import class_count
from rankwise.robust.objective import right
from rankwise.robust.region import Region

NORMS: dict[type[Ball], str] = {Linf: "Linf", L2: "L2"}
# As in the paper: the nine classes nearest to a sample's are aimed at, however many there are.
MOST_CLASSES = 10


FEWEST_CLASSES = 4
"""For the targeted loss, which compares the largest logits."""


class Setting(NamedTuple):
    """What a member of AutoAttack is made of; `package` is torchattacks."""

    package: Any
    model: nn.Module
    classes: int
    steps: int
    queries: int
    common: dict[str, Any]


Member = Callable[[Setting], Any]
"""Makes an attack of torchattacks."""


def apgd(s: Setting) -> Any:
    """Ascent on the cross-entropy that chooses its step sizes."""
    return s.package.APGD(s.model, steps=s.steps, loss="ce", **s.common)


def targeted_apgd(s: Setting) -> Any:
    """The same towards each of the nearest classes; for four classes at least."""
    if s.classes < FEWEST_CLASSES:
        raise ValueError(
            f"the targeted loss of AutoAttack compares the four largest logits, the model has "
            f"{s.classes}; leave it out: `AutoAttack(members=(apgd, targeted_fab, square))`, "
            "all of `rankwise.robust.auto_attack`"
        )
    return s.package.APGDT(s.model, steps=s.steps, n_classes=s.classes, **s.common)


def targeted_fab(s: Setting) -> Any:
    """The nearest decision boundary of each of the nearest classes."""
    return s.package.FAB(
        s.model, steps=s.steps, multi_targeted=True, n_classes=s.classes, **s.common
    )


def square(s: Setting) -> Any:
    """Random search without gradients, which no gradient masking stops."""
    return s.package.Square(s.model, n_queries=s.queries, **s.common)


STANDARD: tuple[Member, ...] = (apgd, targeted_apgd, targeted_fab, square)


@dataclass(frozen=True)
class AutoAttack(Attack):
    """Four attacks in turn, each on the samples that none before has fooled.

    After Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks" (2020), with the implementations of torchattacks (`pip install scipy
    tqdm`, `pip install --no-deps torchattacks`), and the paper's numbers of steps and of targets;
    torchattacks' own AutoAttack takes 10 steps, and targets all other classes.

    It takes float32 images (rows, channels, height, width) in `bounds` (0, 1); a model of
    normalised inputs goes into `Normalised`. Samples that none of the members fools are returned
    unchanged. Slow: thousands of passes for each sample that withstands.

    Args:
        ball: `Linf()` or `L2()`.
        members: functions of this module, in the order in which they run; `STANDARD` is all four.
        steps: of the members that follow gradients, >= 1.
        queries: passes of `square`, >= 1.

    `perturb` raises ImportError without torchattacks, and ValueError for other inputs than those.
    """

    ball: Ball = Linf()
    members: tuple[Member, ...] = STANDARD
    steps: int = 100
    queries: int = 5000

    def __post_init__(self) -> None:
        check_ball("AutoAttack", self.ball)
        check_count("AutoAttack", "steps", self.steps)
        check_count("AutoAttack", "queries", self.queries)
        if type(self.ball) not in NORMS:
            raise ValueError(
                f"`AutoAttack(ball=...)` must be `Linf()` or `L2()`, got {self.ball!r}"
            )
        if not self.members or not all(map(callable, self.members)):
            raise ValueError(
                "`AutoAttack(members=...)` must be functions such as `(apgd, square)`, got "
                f"{self.members!r}"
            )

    def _perturb(
        self, model: nn.Module, y: Tensor, region: Region, generator: torch.Generator
    ) -> Tensor:
        _check_images(region)
        classes = min(class_count(model, region.x), MOST_CLASSES)
        seed = int(torch.randint(2**31, (), generator=generator))
        common = {"norm": NORMS[type(self.ball)], "eps": region.eps, "seed": seed}
        setting = Setting(_package(), model, classes, self.steps, self.queries, common)
        attacks = [member(setting) for member in self.members]
        found = region.x.clone()
        # They seed torch's own generators.
        with torch.random.fork_rng(_cuda_devices(region.x)), torch.enable_grad():
            for attack in attacks:
                left = right(model(found), y).nonzero().squeeze(1)
                if not len(left):
                    break
                attack.set_device(region.x.device)
                point = attack(region.x[left], y[left]).detach()
                found[left] = point
        return region.at(found - region.x)


def _check_images(region: Region) -> None:
    if region.bounds != (0.0, 1.0):
        raise ValueError(
            f"AutoAttack needs `bounds=(0.0, 1.0)`, got {region.bounds}; wrap a model of "
            "normalised inputs in `Normalised` and give pixel values"
        )
    if region.x.ndim != 4 or region.x.dtype != torch.float32:
        raise ValueError(
            "AutoAttack needs float32 images `x` (rows, channels, height, width), got "
            f"{region.x.dtype} of shape {tuple(region.x.shape)}"
        )


def _cuda_devices(x: Tensor) -> set[int]:
    """Where random numbers are drawn: they seed the present device, wherever `x` is."""
    if not torch.cuda.is_available():
        return set()
    return {torch.cuda.current_device()} | ({x.device.index} if x.is_cuda else set())


def _package() -> Any:
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(
            "AutoAttack needs torchattacks: pip install --no-deps torchattacks, and what it needs: "
            f"pip install scipy tqdm ({error})"
        ) from error
    return torchattacks
