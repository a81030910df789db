"""Image classifiers of plain layers: built-in ones, and a user's by its import path."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.recipes.lenet import KERNEL
from rankwise.recipes.lenet import lenet as joined
from rankwise.recipes.vision_transformer import vit
from rankwise.robust.reachable import Reachable, Sphere
from rankwise.robust.walk import LAYERS, Walk

Factory = Callable[..., nn.Module]


def mlp(classes: int, channels: int, size: int, width: int = 512) -> nn.Sequential:
    """Two hidden layers of rectified units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def lenet(classes: int, channels: int, size: int) -> nn.Sequential:
    """LeNet-5 of 20 and 50 kernels and 500 units, see `rankwise.recipes.lenet`."""
    places = (((size - KERNEL + 1) // 2) - KERNEL + 1) // 2
    if places < 1:
        raise ValueError(f"--model lenet needs images of at least 16 x 16, got {size} x {size}")
    convolutions = [nn.Conv2d(channels, 20, KERNEL), nn.Conv2d(20, 50, KERNEL)]
    maps = [nn.Linear(50 * places * places, 500), nn.Linear(500, classes)]
    return joined([*convolutions, *maps])


def vgg(classes: int, channels: int, size: int) -> nn.Sequential:
    """Five 3 x 3 convolutions of 24 to 64 kernels, three pools and two maps, without any norm.

    After Simonyan and Zisserman (2015), as small as images of 28 x 28 allow.
    """
    layers: list[nn.Module] = []
    inner = channels
    for block in ((24,), (32, 32), (64, 64)):
        for outer in block:
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU()]
            inner = outer
        layers.append(nn.MaxPool2d(2))
    places = (size // 8) ** 2
    if places < 1:
        raise ValueError(f"--model vgg needs images of at least 8 x 8, got {size} x {size}")
    layers += [nn.Flatten(), nn.Linear(64 * places, 256), nn.ReLU(), nn.Linear(256, classes)]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """`relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))` (He et al., 2016)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.shortcut = nn.Conv2d(inner, outer, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.shortcut(x)).relu()


def _residual(block: Residual, reachable: Reachable, walk: Walk) -> Reachable:
    path = [block.conv1, block.norm1, nn.ReLU(), block.conv2, block.norm2]
    return Sphere(
        walk.through(path, reachable).radius + walk.through([block.shortcut], reachable).radius
    )


LAYERS[Residual] = _residual


def cnn(classes: int, channels: int, size: int) -> nn.Sequential:
    """Three residual blocks of 48, 96 and 96 kernels, for images of any size.

    The stem and the first two blocks halve height and width, which keeps a step cheap.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 48, 2),
        Residual(48, 96, 2),
        Residual(96, 96, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, classes),
    )


class Inverted(nn.Module):
    """`x + project(depthwise(expand(x)))`, most of it in convolutions of size 1 (MobileNetV2).

    Sandler et al., 2018; without the sum where a stride or a change of channels forbids it.
    """

    def __init__(self, inner: int, outer: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        wide = expansion * inner
        self.expand = nn.Conv2d(inner, wide, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.project = nn.Conv2d(wide, outer, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outer)
        self.has_sum = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.expand(x)).relu()
        y = self.norm2(self.depthwise(y)).relu()
        y = self.norm3(self.project(y))
        return x + y if self.has_sum else y


def _inverted(block: Inverted, reachable: Reachable, walk: Walk) -> Reachable:
    path = [block.expand, block.norm1, nn.ReLU(), block.depthwise, block.norm2, nn.ReLU()]
    path += [block.project, block.norm3]
    return Sphere(walk.through(path, reachable).radius + reachable.radius * block.has_sum)


LAYERS[Inverted] = _inverted


def mobile(classes: int, channels: int, size: int) -> nn.Sequential:
    """Five inverted blocks of 48 to 96 channels, 92 % of the weights in convolutions of size 1."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Inverted(32, 48, 2),
        Inverted(48, 48, 1),
        Inverted(48, 96, 2),
        Inverted(96, 96, 1),
        Inverted(96, 96, 1),
        nn.Conv2d(96, 256, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


BUILT_IN: dict[str, Factory] = {
    "mlp": mlp,
    "lenet": lenet,
    "cnn": cnn,
    "vgg": vgg,
    "mobile": mobile,
    "vit": vit,
}


def network(
    name: str, asked: str = "--model", /, *, classes: int, channels: int, size: int, seed: int
) -> nn.Module:
    """A built-in network, or what `package.module:factory` returns; its start depends on `seed`.

    A factory gets those of `classes`, `channels` and `size` (of the square images) that it takes.
    Raises ValueError, ImportError or TypeError, naming what is wrong with `name`, which the user
    gave as `asked`.
    """
    factory = BUILT_IN.get(name) or _imported(name, asked)
    facts = {"classes": classes, "channels": channels, "size": size}
    accepted = _accepted(factory, facts)
    try:
        inspect.signature(factory).bind(**accepted)
    except TypeError as error:
        raise TypeError(f"{asked} {name} needs more than {', '.join(facts)}: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory(**accepted)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{asked} {name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _imported(name: str, asked: str) -> Factory:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(
            f"{asked} must be one of {', '.join(BUILT_IN)} or an import path such as "
            f"package.module:factory, got {name!r}"
        )
    if str(Path.cwd()) not in sys.path:  # As `python -m` does: a module beside the data is found.
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{asked} {name} could not be imported: {error}") from error
    if not callable(found):
        raise TypeError(f"{asked} {name} is {type(found).__name__}, which cannot be called")
    return found


def _accepted(factory: Factory, facts: dict[str, int]) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return facts
    named = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {name: value for name, value in facts.items() if name in named}
