"""The clock of the suite."""

import time

import torch


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told.

    On a CPU they are those that the processor spent on this process, all threads together: other
    work on the machine then costs a step nothing but cache. With one thread they are those of the
    wall on an idle machine.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
