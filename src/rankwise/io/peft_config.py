"""PEFT's `adapter_config.json`: the scale of each layer, and a refusal of what changes more."""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.io.json_object import read_object, short

CONFIG = "adapter_config.json"
TASK_TYPES = tuple(
    "SEQ_CLS SEQ_2_SEQ_LM CAUSAL_LM TOKEN_CLS QUESTION_ANS FEATURE_EXTRACTION".split()
)
"""That PEFT knows; it refuses a configuration with another one."""

NO_EFFECT = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern "
    "layers_to_transform loftq_config lora_alpha lora_dropout lora_ga_config megatron_core "
    "modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision "
    "runtime_config target_modules task_type use_rslora".split()
)
"""Fields that are read here, or that say where and how an adapter was trained and not what it
computes: the tensors say which layers it changes."""

ADALORA = frozenset(
    "target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step "
    "rank_pattern".split()
)
"""Fields of AdaLoRA's that say how it was trained."""

EFFECT = {
    "use_dora": "DoRA rescales every row of the weight, which is no low-rank update",
    "lora_bias": "a bias is trained along with the product",
    "layer_replication": "it repeats layers of the model",
    "target_parameters": "it adapts parameters that belong to no linear layer",
    "trainable_token_indices": "it replaces single rows of an embedding",
    "alora_invocation_tokens": "the adapter acts from certain tokens on",
    "ensure_weight_tying": "one adapter acts on two layers",
    "megatron_config": "its layers are split over several machines",
}
"""What a field means that a low-rank update cannot say."""

PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the weights of the base model alone."""

ADALORA_EPS = 1e-5
"""What AdaLoRA adds to the rank."""

MAX_PATTERN = 1000
"""Characters of a key of a pattern."""

REPEATED_GROUP = re.compile(r"\)[*+{]")
"""Such as `(a+)+`, which can take longer than any patience to find that a name does not match."""

REPETITION, MAX_REPETITIONS = re.compile(r"(?<!\()[*+?{]"), 5
"""So can a row of them, `.*.*.*.*`, by the power of their number."""

MAX_WAYS = 10**7
"""In which the repetitions of a pattern may share out the characters of a name."""


class LoraScales(NamedTuple):
    """What the configuration says of every layer."""

    path: Path
    r: int
    alpha: float
    ranks: Mapping[str, int]
    """By name or regular expression."""
    alphas: Mapping[str, float]
    by_root: bool
    """`alpha / sqrt(r)`, for rsLoRA, instead of `alpha / r`."""
    ada: bool
    """AdaLoRA: `B diag(E) A`, scaled by `alpha` and the rank at the start, whatever it has now."""
    saved_modules: tuple[str, ...]
    """Ends of names of modules that were trained densely."""
    base_model: str | None
    task_type: str | None
    transposed: bool
    """Whether the model is of `Conv1D`s, with weights the other way round."""

    def rank(self, name: str) -> int:
        return int(_first_match(self.path, self.ranks, name, self.r))

    def scale(self, name: str) -> float:
        alpha = _first_match(self.path, self.alphas, name, self.alpha)
        rank = self.rank(name)
        if self.ada:
            return alpha / (rank + ADALORA_EPS)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def is_peft(folder: Path) -> bool:
    """Whether `folder` is one that PEFT wrote."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> LoraScales:
    """Read and check; ValueError that names the file, the field and what to do."""
    path = folder / CONFIG
    config = read_object(path, "configuration")
    ada = config.get("peft_type") == "ADALORA"
    if not ada and config.get("peft_type") != "LORA":
        raise ValueError(
            f"{path}: 'peft_type' is {short(config.get('peft_type'))}; rankwise reads 'LORA' and "
            "'ADALORA'. PEFT can turn some others into a LoRA: `peft.save_as_lora`"
        )
    if ada:
        if not _number(path, "lora_alpha", config.get("lora_alpha")) > 0:
            raise ValueError(
                f"{path}: 'lora_alpha' is {config['lora_alpha']!r}, which PEFT takes for another "
                "scale after loading than in training; write a positive one"
            )
        config = {**config, "r": config.get("init_r")}
        config = {field: value for field, value in config.items() if field not in ADALORA}
    _refuse(path, config)
    return LoraScales(
        path=path,
        ada=ada,
        r=_rank(path, "init_r" if ada else "r", config.get("r")),
        alpha=_number(path, "lora_alpha", config.get("lora_alpha")),
        ranks={k: _rank(path, k, v) for k, v in _pattern(path, "rank_pattern", config).items()},
        alphas={k: _number(path, k, v) for k, v in _pattern(path, "alpha_pattern", config).items()},
        by_root=_yes(path, "use_rslora", config) and not ada,
        saved_modules=_names(path, "modules_to_save", config.get("modules_to_save")),
        base_model=_text(path, "base_model_name_or_path", config),
        task_type=_text(path, "task_type", config),
        transposed=config.get("fan_in_fan_out") is True,
    )


def _refuse(path: Path, config: Mapping[str, Any]) -> None:
    for field, value in config.items():
        if value and field not in NO_EFFECT:
            reason = EFFECT.get(field, "a field that this rankwise does not know")
            raise ValueError(
                f"{path}: {field!r} is {short(value)}: {reason}. Merge the adapter with PEFT "
                "instead, `PeftModel.merge_and_unload()`, and go on from that model"
            )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{path}: 'bias' is {short(config['bias'])}: biases of adapted layers were trained, "
            "which stay frozen here. Merge the adapter with PEFT, `PeftModel.merge_and_unload()`"
        )
    start = config.get("init_lora_weights", True)
    if not (isinstance(start, bool) or start is None or start in PLAIN_STARTS):
        raise ValueError(
            f"{path}: 'init_lora_weights' is {short(start)}, which changes the weights of the base "
            "model. Save with PEFT as a plain LoRA first: "
            "`save_pretrained(..., path_initial_model_for_weight_conversion=...)`"
        )


def _first_match(path: Path, patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's rule: the first key that is, as a regular expression, the name or a dotted end."""
    for key, value in patterns.items():
        repetitions = len(REPETITION.findall(key)) + 1
        if math.comb(len(name) + repetitions, repetitions) > MAX_WAYS:
            raise ValueError(
                f"{path}: the pattern {short(key)} may match {name[:40]!r}... for hours; write "
                "names of layers"
            )
        if re.match(_whole(key), name):
            return value
    return default


def _whole(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _pattern(path: Path, field: str, config: Mapping[str, Any]) -> dict[str, Any]:
    pattern = config.get(field) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{path}: {field!r} must give numbers by names, got {short(pattern)}")
    for key in pattern:
        many = len(REPETITION.findall(key)) > MAX_REPETITIONS
        if len(key) > MAX_PATTERN or REPEATED_GROUP.search(key) or many:
            raise ValueError(
                f"{path}: {field!r} has the key {key[:80]!r}, a pattern that may match for hours; "
                f"write names of layers, or patterns without a repeated group and with at most "
                f"{MAX_REPETITIONS} repetitions"
            )
        try:
            re.compile(_whole(key))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: {field!r} has the key {short(key)}: {error}") from error
    return pattern


def _rank(path: Path, field: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(
            f"{path}: the rank {field!r} must be an int of at least 1, got {short(value)}"
        )
    return value


def _number(path: Path, field: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{path}: {field!r} must be a finite number, got {short(value)}")
    return float(value)


def _names(path: Path, field: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"{path}: {field!r} must be a list of names, got {short(value)}")
    return tuple(value)


def _text(path: Path, field: str, config: Mapping[str, Any]) -> str | None:
    value = config.get(field)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{path}: {field!r} must be a text, got {short(value)}")
    return value or None


def _yes(path: Path, field: str, config: Mapping[str, Any]) -> bool:
    value = config.get(field)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{path}: {field!r} must be true or false, got {short(value)}")
    return value is True
