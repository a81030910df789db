"""`torch.compile` of the blocks of a model between its low-rank layers.

A compiled graph holds for the shapes of the parameters that it was traced with, so one that sees
factors is traced again whenever a rank changes, and given up after eight times. What never sees
them never is: a low-rank map takes `x` to `y`, and neither shape tells of the rank.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

from rankwise.nn.base import own_class
from rankwise.nn.low_rank import LowRankModule, low_rank_layers


def compile_regions(
    model: nn.Module, *, regions: Iterable[str] | None = None, **options: Any
) -> list[str]:
    """Compile blocks of `model` in place, in graphs that hold whatever the ranks do.

    Low-rank layers run as they do without a compiler, and graphs end and begin at them; blocks of
    one class share their graphs. Names, parameters, gradients and `state_dict` stay as they were;
    a copy by `copy.deepcopy` is not compiled.

    Args:
        model: a model with low-rank layers, before or after its optimizer is made.
        regions: names of the modules to compile, as in `named_modules`; compiled are those alone.
            None: the outermost modules that hold low-rank layers and are of a class that occurs at
            least twice in their `nn.ModuleList` or `nn.Sequential`. Empty: none; what follows from
            `torch.compile(model)` then holds for all ranks too.
        options: of `torch.compile`, such as `backend`, `dynamic`, `mode` and `options`.

    Returns:
        The names of the compiled modules, in the order of the model.

    Raises:
        TypeError: `model` is no module, or `regions` is one string.
        ValueError: nothing to compile, a name that the model lacks or that is a low-rank layer, or
            `fullgraph=True`, since graphs end at every low-rank layer.
    """
    layers = low_rank_layers(model)
    if options.get("fullgraph"):
        raise ValueError(
            "`fullgraph=True` cannot hold: graphs end at every low-rank layer, so that none "
            "depends on a rank. Leave it out, or use `torch.compile(model, fullgraph=True)`, which "
            "compiles again where a rank changes"
        )
    if not layers:
        raise ValueError(
            "`model` has no low-rank layers: call `rankwise.adapt_` or `rankwise.factorize_` "
            "first, or `torch.compile(model)` if it is to have none"
        )
    names = _repeated_blocks(model) if regions is None else _checked(model, regions)
    for layer in model.modules():
        if isinstance(layer, LowRankModule):
            _keep_apart_(layer)
    for name in names:
        model.get_submodule(name).compile(**options)
    return names


def _keep_apart_(layer: LowRankModule) -> None:
    from rankwise.nn.apart import apart

    # Of a partial the layer in it is copied and pickled along; a bound method would run the
    # original's factors from within a copy.
    vars(layer)["forward"] = functools.partial(apart, layer)


def _repeated_blocks(model: nn.Module) -> list[str]:
    found: list[str] = []
    for name, parent in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in found)
        if not inside and isinstance(parent, (nn.ModuleList, nn.Sequential)):
            kinds = Counter(own_class(child) for child in parent)
            found += [
                f"{name}.{key}" if name else key
                for key, child in parent.named_children()
                if kinds[own_class(child)] > 1 and _holds_layers(child)
            ]
    if not found:
        raise ValueError(
            "`model` has no blocks that repeat in an `nn.ModuleList` or `nn.Sequential` and hold "
            "low-rank layers: name the modules to compile, as in `regions=['encoder', 'decoder']`"
        )
    return found


def _holds_layers(block: nn.Module) -> bool:
    if isinstance(block, (LowRankModule, nn.ModuleList, nn.ModuleDict)):
        return False  # They have nothing, or no forward, to compile.
    return any(isinstance(m, LowRankModule) for m in block.modules())


def _checked(model: nn.Module, regions: Iterable[str]) -> list[str]:
    if isinstance(regions, str):
        raise TypeError(f"`regions` must be several names, got {regions!r}: [{regions!r}]")
    asked = list(regions)
    known = dict(model.named_modules())
    for name in asked:
        if name not in known:
            raise ValueError(f"`regions` names {name!r}, which is no module of the model")
        if isinstance(known[name], LowRankModule):
            raise ValueError(
                f"`regions` names {name!r}, which is a low-rank layer: those stay out of graphs. "
                "Name a module that holds it"
            )
    return [name for name in known if name in set(asked)]
