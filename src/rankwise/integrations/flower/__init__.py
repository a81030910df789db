"""For Flower: the federated core over real machines, or over the processes of its simulation.

`client_app` is what a SuperNode runs, `serve` the body of a ServerApp's main function, `simulate`
both at once on this machine. Flower carries the messages, and the core in `rankwise.federated` does
all the mathematics. None of Flower's strategies is used: they average arrays of the same name, and
the mean of the factors of different bases is not the factor of a mean.
"""

try:
    import flwr.app  # noqa: F401
except ImportError as error:
    raise ImportError(
        'rankwise.integrations.flower needs Flower: pip install "rankwise[federated]"'
    ) from error

from rankwise.integrations.flower.client import client_app as client_app
from rankwise.integrations.flower.server import serve as serve
from rankwise.integrations.flower.simulation import simulate as simulate
