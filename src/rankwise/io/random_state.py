"""The states of all random generators that training draws from, on every process."""

import random
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.distributed.team import Team
from rankwise.io.json_object import short

OTHERS = "others"
"""States of the processes after the first, in the state of the first; absent if it is alone."""


def random_state(team: Team) -> dict[str, Any]:
    """States of torch's generators (CPU and every CUDA device) and of Python's `random`.

    Of all processes of a team, which call this at once.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    own = {"cpu": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}
    first, *others = team.gathered(own)
    return {**first, OTHERS: others} if others else dict(first)


def check_random_state(path: Path, state: Any) -> None:
    """ValueError, naming the file, unless `set_random_state_` can put all of `state` back."""
    others = state.get(OTHERS, []) if isinstance(state, dict) else []
    for own in [state, *(others if isinstance(others, list) else [others])]:
        try:
            torch.Generator().set_state(own["cpu"])
            random.Random().setstate(own["python"])
            sound = all(isinstance(t, Tensor) and t.dtype == torch.uint8 for t in own["cuda"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path}: no state of random generators: {short(error)}") from error
        if not sound or not isinstance(own["cuda"], list):
            raise ValueError(f"{path}: 'cuda' must hold states of random generators")


def set_random_state_(state: dict[str, Any], process: int = 0) -> None:
    """Put the generators of this process back; warns for another number of CUDA devices.

    A process that had no part in the run before is seeded by numbers drawn from the first state,
    so that it repeats the random numbers of no other.
    """
    states = [state, *state.get(OTHERS, [])]
    if process >= len(states):
        generator = torch.Generator()
        generator.set_state(state["cpu"])
        seed = int(torch.randint(2**62, (process + 1,), generator=generator)[process])
        torch.manual_seed(seed)
        random.seed(seed)
        return
    state = states[process]
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
