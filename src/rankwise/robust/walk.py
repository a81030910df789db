"""Carrying a reachable through the layers of a network, each by the rule of its type."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.nn import LowRankConv1d
from rankwise.nn.base import check_module
from rankwise.robust.reachable import Reachable, Sphere, activated
from rankwise.robust.weights import KERNELS, KernelOf, normalisation_gain
from rankwise.surgery.watch import evaluating

Rule = Callable[[Any, Reachable, "Walk"], Reachable]
Entry = TypeVar("Entry")

LAYERS: dict[type[nn.Module], Rule] = {}
"""What a layer makes of the reachable of its input, by type: `rule(layer, reachable, walk)`.

A layer of your own needs one entry. With Lipschitz constant c: `LAYERS[Mine] = constant(c)`. For
known layers in a row the rule returns `walk.through([layer.first, layer.second], reachable)`; for
the sum of two branches `Sphere(a.radius + b.radius)`. Without a bound it raises ValueError. A
subclass with a forward of its own is a new type.
"""

FORWARDS = ("forward", "_conv_forward")
"""Methods of a layer, `nn.Conv2d`'s second one included, that make it another function."""
ON_LINES = (nn.Conv1d, LowRankConv1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)
"""Layers of signals (rows, channels, length)."""

NO_SHAPE = torch.Size()
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Unbounded(ValueError):
    """Of a layer, named in the message, for which no bound is known."""


class Network:
    """A model with the shapes of each layer's inputs for one example, which bounds depend on.

    Args:
        model: is evaluated once; it comes back in the modes it had.
        x: (rows, ...) as the model takes it; one row is used.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"`x` must be a tensor (rows, ...) with at least one row, got {got}")
        self.model = model
        check_module(model)
        self.names = {module: name for name, module in model.named_modules()}
        self.shapes, self.output = _seen_shapes(model, x[:1])
        self.convolutions: dict[tuple[nn.Module, nn.Module | None], float] = {}


class Walk:
    """One pass through a network.

    Args:
        network: whose layers are met.
        relax: applied to the reachable before each layer; it may return any larger set.
        logits: of the multipliers of the activations that meet an ellipsoid, in their order; zeros
            where they end. See `rankwise.robust.reachable.activated`.
    """

    def __init__(
        self,
        network: Network,
        *,
        relax: Callable[[Reachable], Reachable] = lambda reachable: reachable,
        logits: Sequence[Tensor] = (),
    ) -> None:
        self.network = network
        self.activations: list[int] = []
        self._relax = relax
        self._logits: Iterator[Tensor | None] = chain(logits, repeat(None))

    def whole(self) -> Reachable:
        """The reachable of the model's outputs for two inputs at distance 1."""
        return self.through([self.network.model], Sphere(1.0))

    def through(self, modules: Iterable[nn.Module], reachable: Reachable) -> Reachable:
        """The reachable after `modules`, one after the other."""
        layers = list(_layers(modules))
        for place, layer in enumerate(layers):
            before, after = layers[place - 1 : place], layers[place + 1 : place + 2]
            if not _is_norm(layer):
                reachable = self._relax(reachable)
            elif len(before) == 1 and _entry(before[0], KERNELS) is not None:
                continue
            norm = after[0] if after and _is_norm(after[0]) else None
            reachable = self._step(layer, norm, reachable)
        return reachable

    def shapes(self, module: nn.Module) -> set[torch.Size]:
        """Of all inputs of a module, with the batch; ValueError unless of one number of axes."""
        shapes = self.network.shapes.get(module, set())
        if NO_SHAPE in shapes or len(set(map(len, shapes))) != 1:
            raise ValueError(
                "is not called with tensors of one number of dimensions; give each place a module "
                "of its own, called with one tensor"
            )
        return shapes

    def sides(self, module: nn.Module) -> set[torch.Size]:
        """Of the images or signals that a module gets; ValueError where a batch is missing."""
        axes = ("length",) if isinstance(module, ON_LINES) else ("height", "width")
        shapes = self.shapes(module)
        for shape in shapes:
            if len(shape) != 2 + len(axes):
                raise ValueError(
                    f"gets an input of shape {tuple(shape)}, where a bound needs "
                    f"(rows, channels, {', '.join(axes)})"
                )
        return {shape[2:] for shape in shapes}

    def activate(self, reachable: Reachable, largest_slope: float) -> Reachable:
        """After an activation with slopes in [0, `largest_slope`]."""
        if isinstance(reachable, Sphere):
            return Sphere(reachable.radius * largest_slope)
        self.activations.append(len(reachable.axes))
        logits = next(self._logits)
        return activated(
            reachable, largest_slope, torch.zeros_like(reachable.axes) if logits is None else logits
        )

    def _step(self, layer: nn.Module, norm: nn.Module | None, reachable: Reachable) -> Reachable:
        with self._naming(layer):
            kernel = _entry(layer, KERNELS)
            if kernel is not None:
                return Sphere(reachable.radius * self._convolution(layer, norm, kernel))
            return rule_of(layer)(layer, reachable, self)

    @contextmanager
    def _naming(self, layer: nn.Module) -> Iterator[None]:
        try:
            yield
        except Unbounded:
            raise
        except ValueError as error:
            name = self.network.names.get(layer, "")
            raise Unbounded(f"layer {name!r} ({type(layer).__name__}) {error}") from error

    def _convolution(self, layer: nn.Module, norm: nn.Module | None, kernel: KernelOf) -> float:
        key = layer, norm
        known = self.network.convolutions
        if key not in known:
            gain = None
            if norm is not None:
                with self._naming(norm):
                    gain = normalisation_gain(norm)
            # A bound for larger images holds for smaller ones, which are a part of them.
            height, width = (1, *map(max, zip(*self.sides(layer), strict=True)))[-2:]
            known[key] = kernel(layer, gain).norm((height, width))
        return known[key]


def rule_of(layer: nn.Module) -> Rule:
    """The rule of a layer's type; ValueError if none."""
    rule = _entry(layer, LAYERS)
    if rule is None and "forward" in vars(layer):
        raise ValueError("has a `forward` set on the instance, for which no bound is known")
    if rule is None:
        raise ValueError(
            "has no known Lipschitz bound; add one by rankwise.robust.LAYERS"
            f"[{type(layer).__name__}] = rule, with rule(layer, reachable, walk) -> reachable"
        )
    return rule


def _entry(layer: nn.Module, table: Mapping[type[nn.Module], Entry]) -> Entry | None:
    """That of the layer's type, or of a base of it that has the same forward."""
    for kind in type(layer).__mro__:
        if kind in table and _acts_as(layer, kind):
            return table[kind]
    return None


def _is_norm(layer: nn.Module) -> bool:
    return type(layer) in NORMS and _acts_as(layer, type(layer))


def _acts_as(layer: nn.Module, kind: type) -> bool:
    return not any(
        name in vars(layer) or getattr(type(layer), name, None) is not getattr(kind, name, None)
        for name in FORWARDS
    )


def _layers(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential) and _acts_as(module, nn.Sequential):
            yield from _layers(module)
        else:
            yield module


def _seen_shapes(
    model: nn.Module, row: Tensor
) -> tuple[dict[nn.Module, set[torch.Size]], torch.Size]:
    """The input shapes of each module, as often as it is called; the output's."""
    shapes: dict[nn.Module, set[torch.Size]] = {}

    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        new = inputs[0].shape if inputs and isinstance(inputs[0], Tensor) else NO_SHAPE
        shapes.setdefault(module, set()).add(new)

    hooks: list[RemovableHandle] = []
    try:
        hooks += [module.register_forward_pre_hook(see) for module in model.modules()]
        with evaluating(model), torch.no_grad():
            y = model(row)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(y, Tensor):
        raise ValueError(f"`model` must return a tensor, got {type(y).__name__}")
    return shapes, y.shape
