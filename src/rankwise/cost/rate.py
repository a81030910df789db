"""How fast something is, as a function of its size."""

import math
from bisect import bisect_left
from typing import NamedTuple


class Rate(NamedTuple):
    """Amounts per second at some sizes; between them a power law, beyond them the nearest."""

    sizes: tuple[float, ...]
    """Ascending, > 0."""
    speeds: tuple[float, ...]
    """> 0, one for each size."""

    def at(self, size: float) -> float:
        """The speed at `size`, by a line in the logarithms of both."""
        after = bisect_left(self.sizes, size)
        if after == 0:
            return self.speeds[0]
        if after == len(self.sizes):
            return self.speeds[-1]
        x0, x1 = (math.log(x) for x in self.sizes[after - 1 : after + 1])
        y0, y1 = (math.log(y) for y in self.speeds[after - 1 : after + 1])
        return math.exp(y0 + (y1 - y0) * (math.log(size) - x0) / (x1 - x0))


def constant(speed: float) -> Rate:
    """The same at each size."""
    return Rate((1.0,), (speed,))
