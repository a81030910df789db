"""What a SuperNode runs."""

from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from rankwise.federated.client import Client
from rankwise.integrations.flower.message import ABOUT, of_reply, packed, to_request, unpacked

MEMORY = "rankwise"
"""The record of `Context.state` that holds what a client remembers within a round."""


def client_app(make_client: Callable[[Context], Client]) -> ClientApp:
    """A ClientApp that answers `serve`.

    Flower starts a new process for each message, or takes any of a pool; so the client is made
    anew, and its memory is kept in `Context.state`, which stays on the node. An error is told to
    the server, which goes on without this client until the next round.

    Args:
        make_client: from `context.node_config` (of this node, such as "partition-id") and
            `context.run_config` (of the app). Called for every message: what takes long, such as
            reading data, is worth a `functools.cache` where a process may answer twice.
    """
    app = ClientApp()

    @app.query()
    def name(message: Message, context: Context) -> Message:
        about = ConfigRecord({"name": make_client(context).name})
        return Message(RecordDict({ABOUT: about}), reply_to=message)

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        client = make_client(context)
        kept = context.state.get(MEMORY)
        client.memory = unpacked(kept) if isinstance(kept, ArrayRecord) else {}
        reply = client.answer(to_request(message.content))
        context.state[MEMORY] = packed(client.memory)
        return Message(of_reply(reply), reply_to=message)

    return app
