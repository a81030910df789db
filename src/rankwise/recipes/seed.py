"""The seed of a job, by one rule for all of them."""

from rankwise.recipes.folder import require

MOST = 2**32
"""Seeds below it; times a million, for batches and clients, they still fit 64 bits."""


def check_seed(seed: int) -> None:
    """ValueError for a seed that some generator would not take."""
    require(0 <= seed < MOST, "seed", "must be in [0, 2^32)", seed)
