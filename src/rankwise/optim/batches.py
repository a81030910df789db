"""What one backward pass knows of a gradient beyond its tangent part: inputs and output gradients.

For `y = x (W0 + s U S V^T)^T` the gradient with respect to `U S V^T` is `G = s dy^T x`. With `x`
and `dy` at hand, its products with any bases cost as much as those with `U` and `V`, and no second
pass is needed as long as `W` is the same. Several passes before a step add up. A common factor
(`s`, an unscaled loss, a clipped norm) is read off the gradient slots.
"""

import weakref

import torch
from torch import Tensor

from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.factors import Factors
from rankwise.numerics.tangent import Tangent
from rankwise.optim.layers import NamedLayer

MAX_DEFECT = 0.05


class Batches:
    """Keeps `x` and `dy` of each layer from its backward passes to the next step.

    What it needs of a layer are hooks; they go when it does.
    """

    def __init__(self, layers: list[NamedLayer]) -> None:
        self._pairs: dict[LowRankModule, list[tuple[Tensor, Tensor]]] = {}
        own = weakref.ref(self)

        def after_forward(
            layer: LowRankModule, inputs: tuple[Tensor, ...], named: dict[str, Tensor], y: Tensor
        ) -> None:
            batches = own()
            # A copy of the model has copies of its layers, and these very hooks. A pass through
            # frozen factors, an attack's on the inputs, is no part of their gradient.
            if batches is not None and layer in batches._pairs and _trains(layer, y):
                x = (*inputs, *named.values())[0].detach()
                y.register_hook(lambda dy: batches._pairs[layer].append((x, dy.detach())))

        for _, layer in layers:
            self._pairs[layer] = []
            hook = layer.register_forward_hook(after_forward, with_kwargs=True)
            weakref.finalize(self, hook.remove)

    def clear(self) -> None:
        for pairs in self._pairs.values():
            pairs.clear()

    def gradient(self, name: str, layer: Factored, point: Factors, known: Tangent) -> Tangent:
        """`P(W) G` in the bases of `point`; `known` is what the layer's own bases have of it.

        A gradient that was scaled as a whole since (clipped, unscaled) is recognised by `known`.
        Raises ValueError where it is not that of the batches.
        """
        f = layer.factors()
        pairs = self._pairs[layer]
        rows = [layer.gradient_rows(x, dy) for x, dy in pairs]
        x, dy = (joined(list(parts)).to(f.S.dtype) for parts in zip(*rows, strict=True))
        found = projected(point, x, dy)
        # The bases of `point` hold those of the layer, so this is `G V` as the batches have it.
        own = found.K @ (point.V.mT @ f.V)
        factor, defect = nearest_multiple(own, known.K)
        if defect > MAX_DEFECT:
            raise ValueError(
                f"the gradient of layer {name!r} is not that of its last backward passes (they "
                f"differ by {float(defect):.0%}). An integrator that needs more than one point "
                "keeps inputs and output gradients from backward to step: call "
                "`optimizer.zero_grad()` before the first pass of a step, and change gradients "
                "only by a common factor."
            )
        return Tangent(*(factor * t for t in found))


def _trains(layer: LowRankModule, y: Tensor) -> bool:
    """Whether a backward pass from the output `y` reaches the factors."""
    return y.requires_grad and any(p.requires_grad for p in layer.factor_parameters())


def nearest_multiple(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The `c` for which `c a` is nearest to `b`, and `||b - c a|| / ||b||`; 0-dim tensors."""
    tiny = torch.finfo(a.dtype).tiny
    # Largest entries one, so that no square under- or overflows, whatever the size of a gradient.
    sizes = [torch.linalg.vector_norm(t, float("inf")).clamp_min(tiny) for t in (a, b)]
    x, y = a / sizes[0], b / sizes[1]
    c = (x * y).sum() / x.square().sum().clamp_min(tiny)
    defect = (y - c * x).norm() / y.norm().clamp_min(tiny)
    return c * (sizes[1] / sizes[0]), defect


def projected(point: Factors, x: Tensor, dy: Tensor) -> Tangent:
    """`P(W) dy^T x` for `x` (rows, n) and `dy` (rows, m), in the bases of `point`."""
    at, ht = point.V.mT.contiguous() @ x.mT, point.U.mT.contiguous() @ dy.mT
    return Tangent((at @ dy).mT, (ht @ x).mT, ht @ at.mT)


def joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
