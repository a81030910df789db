"""Who trains a factor: one optimizer, and nothing else behind its back."""

import weakref
from typing import Any, TypeAlias

from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.factors import orthonormality_defect
from rankwise.optim.layers import NamedLayer

_Owners: TypeAlias = "weakref.WeakKeyDictionary[LowRankModule, weakref.ref[Any]]"
_owners: _Owners = weakref.WeakKeyDictionary()

MAX_DEFECT = 1e-3

Version = tuple[int, ...]
"""Changes with every write to the factors of a layer."""


def claim(optimizer: Any, layers: list[NamedLayer]) -> None:
    """Make `optimizer` the owner of `layers`; an earlier owner will refuse its next step."""
    for name, layer in layers:
        check_orthonormal(name, layer)
        _owners[layer] = weakref.ref(optimizer)


def owner_of(layer: LowRankModule) -> Any:
    """The optimizer that was last made for `layer`; None if there is none or it is gone."""
    owner = _owners.get(layer)
    return None if owner is None else owner()


def unwrapped(optimizer: Any) -> Any:
    """What is inside wrappers such as those of accelerate and Lightning, one in another or not."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


def check_untouched(optimizer: Any, layers: list[NamedLayer], versions: dict[str, Version]) -> None:
    """ValueError if a layer has a newer owner, or its bases were changed and are no longer bases.

    Every in-place write raises a tensor's version, every other one changes the rank, so an
    untouched layer costs one comparison.
    """
    for name, layer in layers:
        owner = _owners.get(layer)
        if owner is not None and owner() is not optimizer:
            raise ValueError(
                f"layer {name!r} belongs to an optimizer that was made later; two optimizers must "
                "not train the same factors. Use the newer one, or make one for both."
            )
        if versions.get(name) not in (None, _version(layer)):
            check_orthonormal(name, layer)


def record(layers: list[NamedLayer], versions: dict[str, Version]) -> None:
    """Remember the versions of the factors after a step."""
    for name, layer in layers:
        versions[name] = _version(layer)


def check_orthonormal(name: str, layer: LowRankModule) -> None:
    """ValueError unless `U` and `V` have orthonormal columns."""
    f = layer.factors()
    for letter, Q in (("U", f.U), ("V", f.V)):
        defect = float(orthonormality_defect(Q))
        if not defect <= MAX_DEFECT:
            raise ValueError(
                f"the columns of {letter} of layer {name!r} are not orthonormal "
                f"(defect {defect:.1e}). "
                "Were the factors changed by another optimizer, averaged, or decayed? Only "
                "rankwise.Optimizer may train them."
            )


def _version(layer: LowRankModule) -> Version:
    U, core, V = layer.factor_parameters()
    return U.shape[1], V.shape[1], U._version + core._version + V._version
