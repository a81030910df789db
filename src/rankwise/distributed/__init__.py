"""Training on several processes: equal factors everywhere, one small reduction a step."""

from rankwise.distributed import cost as cost
from rankwise.distributed.prepare import prepare as prepare
from rankwise.distributed.replicas import Replicas as Replicas
from rankwise.distributed.replicas import Traffic as Traffic

__all__ = ["Replicas", "Traffic", "cost", "prepare"]
