"""The states of all random generators that training draws from."""

import random
import warnings
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """States of torch's generators (CPU and every CUDA device) and of Python's `random`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def set_random_state_(state: dict[str, Any]) -> None:
    """Put the generators back; warns if the machine has another number of CUDA devices."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(state["cuda"]):
        warnings.warn(
            f"saved with {len(state['cuda'])} CUDA devices, this machine has {devices}: random "
            "numbers on them will not be those of an uninterrupted run",
            stacklevel=3,
        )
    for index, value in enumerate(state["cuda"][:devices]):
        torch.cuda.set_rng_state(value, index)
    torch.set_rng_state(state["cpu"])
    random.setstate(state["python"])
