"""The same rounds in the processes of Flower's simulation, on this machine."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from rankwise.federated.client import Client
from rankwise.federated.engine import check_clients, check_rounds
from rankwise.federated.record import RoundRecord
from rankwise.federated.server import Server
from rankwise.integrations.flower.client import client_app
from rankwise.integrations.flower.server import serve

QUIET = {
    # Neither counts of use sent, nor a warning of what a later Ray does to CUDA_VISIBLE_DEVICES.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def simulate(
    server: Server,
    clients: Mapping[str, Client],
    rounds: int,
    watch: Callable[[RoundRecord], object] | None = None,
    *,
    processes: int | None = None,
    timeout: float = 600.0,
) -> list[RoundRecord]:
    """`rankwise.federated.run` by Flower's simulation: the same result, bit for bit.

    The clients answer in processes of Ray, with as many threads each as PyTorch has here. A client
    that raises, whatever it raises, is left out of its round, and so is one whose process dies;
    the process is started anew.

    Flower sends notes of its use to its makers unless the environment has
    `FLWR_TELEMETRY_ENABLED=0` before it is imported.

    Args:
        server: goes on from where it is.
        clients: one for each name of the server; copied once to each process.
        rounds: how many, >= 0.
        watch: called with the record of each round, in another thread.
        processes: that answer at the same time, >= 1. None: one for each core.
        timeout: seconds within which an answer must come, > 0.

    Raises:
        ImportError: without Ray.
        ValueError: if the names are not those of the server.
    """
    check_rounds(rounds)
    check_clients(server, clients)
    records: list[RoundRecord] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        last = server.number + rounds
        records.extend(serve(grid, server, last, timeout=timeout, watch=watch))

    with ray_processes(processes) as ray:
        from flwr.simulation import run_simulation

        make_client = Copies(ray.put(clients), server.clients, torch.get_num_threads())
        # A process that dies is started anew; Flower would go on to send to a dead one.
        resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "max_restarts": -1}
        run_simulation(
            server_app,
            client_app(make_client),
            len(clients),
            backend_config={"client_resources": resources},
        )
    return records


class Copies:
    """Clients that are in Ray's memory, by the partition of the node.

    Args:
        reference: to the clients.
        names: of them, by partition.
        threads: that PyTorch gets; the order of its sums, and so their last bits, depend on it.
    """

    def __init__(self, reference: Any, names: tuple[str, ...], threads: int) -> None:
        self._reference, self._names, self._threads = reference, names, threads

    def __call__(self, context: Context) -> Client:
        torch.set_num_threads(self._threads)
        partition = int(context.node_config["partition-id"])
        return copied(self._reference)[self._names[partition]]


@lru_cache(maxsize=1)
def copied(reference: Any) -> Mapping[str, Client]:
    """The clients, in this process."""
    import ray

    return ray.get(reference)


@contextmanager
def ray_processes(count: int | None) -> Iterator[Any]:
    """Ray, running and quiet, which is Flower's to use; Flower ends it, or else the end does."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            'Flower\'s simulation needs Ray: pip install "rankwise[federated]"'
        ) from error
    log = logging.getLogger("flwr")
    level, on_termination = log.level, signal.getsignal(signal.SIGTERM)
    with environment(QUIET):
        try:
            log.setLevel(logging.CRITICAL)
            ray.init(
                num_cpus=count,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            # Ray has put a handler of its own in the place of the user's.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_termination)
            yield ray
        finally:
            ray.shutdown()
            log.setLevel(level)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with `values`; at the end as before, whatever Ray put there."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
