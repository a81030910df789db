"""Who competes at the level of models; a new contender is one more entry of `CONTENDERS`.

`frozen` is the floor: the model without adapters, with a gradient that has to reach the input of
the first block, as an adapter there needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from methods import Contender, Setting, contend
from torch import Tensor, nn

from cost.workloads import Workload
from rankwise.optim.trust import DEFAULT_LR

PEER_LR = 1e-3


@dataclass(frozen=True)
class Arm:
    """A contender on its own copy of the model."""

    model: nn.Module
    trainer: Contender


Builder = Callable[[Workload, int, int], Arm]
"""Makes an arm for a workload, a rank and the number of steps that it will take."""


def by_setting(setting: Setting) -> Builder:
    """The method of `setting` at just its rank and rate."""

    def build(workload: Workload, rank: int, steps: int) -> Arm:
        model = workload.fresh()
        body = model.get_submodule(workload.body)
        return Arm(model, contend(setting, body, list(workload.targets())))

    return build


def peer(method: str) -> Builder:
    def build(workload: Workload, rank: int, steps: int) -> Arm:
        return by_setting(Setting(method, rank, PEER_LR, 0, steps))(workload, rank, steps)

    return build


def ours(
    method: str = "rankwise",
    *,
    share: float | None = None,
    rtol: float | None = None,
    inputs_every: int = 1,
) -> Builder:
    """rankwise; ranks adapt to `share` of the parameters at the start or by a tolerance, if given.

    The first cut is at the end of the first cycle of 25 steps.
    """
    options = (("inputs_every", inputs_every),)

    def build(workload: Workload, rank: int, steps: int) -> Arm:
        mean_rank = None if share is None else share * rank
        setting = Setting(method, rank, DEFAULT_LR, 0, steps, mean_rank, rtol, optimizer=options)
        return by_setting(setting)(workload, rank, steps)

    return build


def frozen(workload: Workload, rank: int, steps: int) -> Arm:
    model = workload.fresh()

    def reach(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.requires_grad_()

    model.get_submodule(workload.embedding).register_forward_hook(reach)
    return Arm(model, Contender([], parameters=lambda: 0))


REFERENCE = "LoRA"
FLOOR = "frozen"
ADAPTING = "rankwise adapting"
"""To half of its parameters."""
TOLERANT = "rankwise, tolerance"
SPARING = "rankwise adapting, inputs every 4"
CONTENDERS: dict[str, Builder] = {
    REFERENCE: peer("LoRA"),
    FLOOR: frozen,
    "rankwise": ours(),
    ADAPTING: ours(share=0.5),
    TOLERANT: ours(rtol=0.3),
    SPARING: ours(share=0.5, inputs_every=4),
    "AdaLoRA": peer("AdaLoRA"),
    "DoRA": peer("DoRA"),
    "rsLoRA": peer("rsLoRA"),
    "PiSSA": peer("PiSSA"),
    "full": peer("full"),
    "rankwise augmented": ours("rankwise augmented"),
    "rankwise abc-PSI": ours("rankwise abc-PSI"),
}
CORE = (REFERENCE, FLOOR, "rankwise", ADAPTING, TOLERANT, SPARING, "AdaLoRA", "DoRA")
"""Those that every case has."""


def steps_always(name: str) -> bool:
    """Whether a contender takes a step in every round.

    The cost of rankwise changes along a run; the reference and the floor are what it is compared
    with. All others cost the same in each step and may sit rounds out.
    """
    return name in (REFERENCE, FLOOR) or name.startswith("rankwise")
