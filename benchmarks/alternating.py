"""Seconds of several things done in turn, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

LEAST_ROUNDS = 7


def alternate(actions: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, float]:
    """Median seconds of each action; about `seconds` go into all rounds together."""
    for _ in range(2):
        start = time.perf_counter()
        for action in actions.values():
            action()
        one_round = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(max(LEAST_ROUNDS, int(seconds / one_round))):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}
