"""Seconds of several things done in turn, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

LEAST_ROUNDS = 7
Actions = Mapping[str, Callable[[], object]]
Clock = Callable[[], float]


def rounds_of(
    actions: Actions, *, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each action in each round; about `seconds` go into all rounds together."""
    for _ in range(2):
        one_round = sum(one_turn(actions, clock).values())
    count = max(LEAST_ROUNDS, int(seconds / one_round))
    turns = [one_turn(actions, clock) for _ in range(count)]
    return {name: [turn[name] for turn in turns] for name in actions}


def alternate(actions: Actions, *, seconds: float) -> dict[str, float]:
    """Median seconds of each action; about `seconds` go into all rounds together."""
    times = rounds_of(actions, seconds=seconds)
    return {name: statistics.median(own) for name, own in times.items()}


def one_turn(actions: Actions, clock: Clock) -> dict[str, float]:
    """Seconds of each action, done once."""
    times = {}
    for name, action in actions.items():
        start = clock()
        action()
        times[name] = clock() - start
    return times
