"""Which models predict a next token."""

from pathlib import Path
from typing import Any


def is_causal(source: str | Path) -> bool:
    """Whether a folder or hub name is of a causal language model.

    Raises ImportError without transformers, ValueError if there is no such model.
    """
    try:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError as error:
        raise ImportError(
            'pretrained models need transformers: pip install "rankwise[finetune]"'
        ) from error
    try:
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--model {str(source)!r} is no folder or hub name of a model: {first}"
        ) from error
    if config.is_encoder_decoder:
        raise ValueError(
            f"--model {str(source)!r} is an encoder with a decoder, which is not supported"
        )
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return not causal.isdisjoint(config.architectures or ())
