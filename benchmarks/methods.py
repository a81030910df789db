"""The methods that are compared: rankwise and its peers, each peer by its own package.

Every method gets the same frozen encoder, the same list of linear maps and the same head. The
LoRA family runs with `alpha = 2 r`, the usual choice, AdamW without weight decay, no dropout of
its own. AdaLoRA gets what its users have to remember: the total number of steps in advance, a
call after each step, and the orthogonality penalty in the loss; its parameters are those that it
allocates, for it masks directions and frees none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.optim.trust import Trust

ADALORA_PENALTY = 0.5
RULES = {
    "rankwise": rw.Adam,
    "rankwise spectral": rw.Spectral,
    "rankwise heavy ball": rw.HeavyBall,
    "rankwise SGD": rw.SGD,
}
INTEGRATORS = {
    "rankwise augmented": rw.integrators.AugmentedBUG,
    "rankwise abc-PSI": rw.integrators.AugmentedPSI,
}
CONTROLS = {"rankwise rate-free": rw.RateFree}


@dataclass
class Contender:
    """A method on a model: what the training loop calls."""

    optimizers: list[torch.optim.Optimizer]
    parameters: Callable[[], int]
    ranks: Callable[[], dict[str, int]] = dict
    penalty: Callable[[], Tensor | float] = lambda: 0.0
    after_step: Callable[[int], Any] = lambda step: None


@dataclass(frozen=True)
class Setting:
    """One run of one method."""

    method: str
    rank: int
    lr: float
    seed: int
    steps: int
    mean_rank: float | None = None
    """rankwise: budget, as the parameters of this rank in every layer."""
    rtol: float | None = None
    """rankwise: tolerance instead of a budget."""
    rule: tuple[tuple[str, Any], ...] = ()
    """rankwise: options of the update rule."""
    rank_rule: tuple[tuple[str, Any], ...] = ()
    """rankwise: further options of the rank rule."""
    optimizer: tuple[tuple[str, Any], ...] = ()
    """rankwise: options of the optimizer."""

    @property
    def label(self) -> str:
        """The method, with what differs from its default."""
        told = [f"{k} {v}" for k, v in self.rule + self.rank_rule + self.optimizer]
        if self.rtol is not None:
            told.insert(0, f"tolerance {self.rtol:g}")
        elif self.method.startswith("rankwise") and self.mean_rank is None:
            told.insert(0, "fixed rank")
        return ", ".join([self.method, *told])

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> "Setting":
        pairs = {k: tuple(tuple(pair) for pair in v) for k, v in entries.items() if _is_list(v)}
        return cls(**{**entries, **pairs})


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def contend(setting: Setting, encoder: nn.Module, targets: list[str]) -> Contender:
    """Put the method's adapter into `encoder` in place."""
    for p in encoder.parameters():
        p.requires_grad_(False)
    torch.manual_seed(1000 + setting.seed)
    if setting.method.startswith("rankwise"):
        return _rankwise(setting, encoder, targets)
    if setting.method == "full":
        return _full(setting, encoder, targets)
    return _peft(setting, encoder, targets)


def _rankwise(setting: Setting, encoder: nn.Module, targets: list[str]) -> Contender:
    rw.adapt_(encoder, rank=setting.rank, select=targets, seed=setting.seed)
    layers = {n: m for n, m in encoder.named_modules() if isinstance(m, rw.LowRankLinear)}
    cost = {name: layer.in_features + layer.out_features + 1 for name, layer in layers.items()}
    rank_rule: Any = rw.FixedRank()
    if setting.mean_rank is not None:
        budget = int(setting.mean_rank * sum(cost.values()))
        rank_rule = rw.Budget(parameters=budget, **dict(setting.rank_rule))
    elif setting.rtol is not None:
        rank_rule = rw.Tolerance(rtol=setting.rtol, **dict(setting.rank_rule))
    optimizer = rw.Optimizer(
        encoder,
        lr=setting.lr,
        rule=RULES.get(setting.method, rw.Adam)(**dict(setting.rule)),
        rank_rule=rank_rule,
        integrator=INTEGRATORS.get(setting.method, rw.integrators.ParallelBUG)(),
        control=CONTROLS.get(setting.method, Trust)(),
        **dict(setting.optimizer),
    )
    return Contender(
        [optimizer],
        parameters=lambda: sum(layer.rank * cost[name] for name, layer in layers.items()),
        ranks=lambda: {name: layer.rank for name, layer in layers.items()},
    )


def _full(setting: Setting, encoder: nn.Module, targets: list[str]) -> Contender:
    trained = [p for name in targets for p in encoder.get_submodule(name).parameters()]
    for p in trained:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=setting.lr, weight_decay=0.0)
    return Contender([optimizer], parameters=lambda: sum(p.numel() for p in trained))


def _peft(setting: Setting, encoder: nn.Module, targets: list[str]) -> Contender:
    from peft import AdaLoraConfig, LoraConfig, inject_adapter_in_model

    r, steps = setting.rank, setting.steps
    common: dict[str, Any] = {"target_modules": targets, "lora_dropout": 0.0}
    if setting.method == "AdaLoRA":
        config = AdaLoraConfig(
            **common, init_r=r + r // 2, target_r=r, lora_alpha=2 * r, tinit=steps // 10,
            tfinal=steps // 3, deltaT=5, total_step=steps, orth_reg_weight=ADALORA_PENALTY,
        )  # fmt: skip
    else:
        extra = {
            "LoRA": {},
            "rsLoRA": {"use_rslora": True},
            "DoRA": {"use_dora": True},
            "PiSSA": {"init_lora_weights": "pissa"},
        }[setting.method]
        config = LoraConfig(**common, r=r, lora_alpha=2 * r, **extra)
    if setting.method == "AdaLoRA":
        return _adalora(setting, encoder, config)
    inject_adapter_in_model(config, encoder)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.lr, weight_decay=0.0)
    return Contender([optimizer], parameters=lambda: sum(p.numel() for p in trained))


def _adalora(setting: Setting, encoder: nn.Module, config: Any) -> Contender:
    from peft import PeftModel, get_peft_model

    wrapped: PeftModel = get_peft_model(encoder, config)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    pairs = [p for n, p in encoder.named_parameters() if "lora_A" in n or "lora_B" in n]

    def penalty() -> Tensor:
        grams = [p @ p.T if p.shape[0] < p.shape[1] else p.T @ p for p in pairs]
        distances = [(g - torch.eye(len(g), device=g.device)).norm() for g in grams]
        return ADALORA_PENALTY * torch.stack(distances).mean()

    optimizer = torch.optim.AdamW(trained, lr=setting.lr, weight_decay=0.0)
    return Contender(
        [optimizer],
        parameters=lambda: sum(p.numel() for p in trained),
        penalty=penalty,
        after_step=lambda step: wrapped.base_model.update_and_allocate(step),
    )
