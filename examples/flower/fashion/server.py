"""The server: opens rounds, and says after each how good the network is."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fashion.task import method, name_of, network
from rankwise.federated import RoundRecord, Server
from rankwise.integrations.flower import serve
from rankwise.recipes.images import read_images

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    names = [name_of(i) for i in range(int(config["clients"]))]
    server = Server(network(), method(context), names, quorum=int(config["quorum"]))
    images = read_images("fashion-mnist")

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
