"""The server: opens rounds, and says after each how good the network is."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fashion.task import images_of, method, name_of, network
from rankwise.federated import RoundRecord, Server
from rankwise.integrations.flower import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config, images = context.run_config, images_of(context)
    names = [name_of(i) for i in range(int(config["clients"]))]
    server = Server(network(images), method(context), names, quorum=int(config["quorum"]))

    def watch(record: RoundRecord) -> None:
        with torch.no_grad():
            right = server.model(images.test).argmax(1) == images.test_labels
        print(
            f"round {record.number + 1}: accuracy {right.float().mean():.1%}, "
            f"ranks {list(record.ranks.values())}, {record.down + record.up:,} bytes, "
            f"{len(record.answered)} of {len(record.participants)} clients",
            *record.events,
            sep="\n  ",
            flush=True,
        )

    serve(
        grid, server, int(config["rounds"]), checkpoint=config["checkpoint"] or None,
        timeout=float(config["timeout"]), watch=watch,
    )  # fmt: skip
