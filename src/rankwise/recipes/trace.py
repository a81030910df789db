"""What a study records of each contender."""

from dataclasses import dataclass, field


@dataclass
class Trace:
    """One entry a step; `gradients` and `seconds` count from the start."""

    name: str
    gradients: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)
    stationarity: list[float] = field(default_factory=list)
    """`||P(W) G||` at the start of the step."""
    accuracy: float | None = None
    """On held-out rows, where the problem has some."""

    def add(
        self, *, gradients: int, seconds: float, loss: float, rank: float, stationarity: float
    ) -> None:
        """One step that took so many gradients and seconds."""
        self.gradients.append(gradients + (self.gradients[-1] if self.gradients else 0))
        self.seconds.append(seconds + (self.seconds[-1] if self.seconds else 0.0))
        self.losses.append(loss)
        self.ranks.append(rank)
        self.stationarity.append(stationarity)
