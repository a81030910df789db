"""Nodes of Flower in this process: real apps, real messages, which cross as the bytes of a link."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents


def crossed(message: Message) -> Message:
    """What arrives: made anew from the bytes that Flower sends."""
    contents = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
    copy = inflate_object_from_contents(message.object_id, contents)
    copy.metadata.__dict__["_message_id"] = message.metadata.message_id
    return copy


@dataclass
class Node:
    """A SuperNode: it keeps the context of a run, and starts the app for each message."""

    app: ClientApp
    config: dict
    name: str = ""
    """Given by the operator; "" for none."""
    silent: Callable[[Message], bool] = lambda message: False
    """Whether it is killed within its answer."""
    late: Callable[[Message], int] = lambda message: 0
    """How many further messages the server sends before the answer to this one is there."""
    alter: Callable[[Message, Message], None] = lambda message, reply: None
    """What a hostile node does to its answer."""
    online: bool = True
    run_config: dict = field(default_factory=dict)
    state: RecordDict = field(default_factory=RecordDict)

    def answer(self, message: Message, node_id: int) -> Message | None:
        context = Context(1, node_id, self.config, self.state, self.run_config)
        try:
            reply = self.app(crossed(message), context)
        except Exception as error:  # as SuperNodes do
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(code=2, reason=reason), reply_to=message)
        if self.silent(message):
            return None
        self.state = context.state
        self.alter(message, reply)
        return reply


class Nodes(Grid):
    """A grid of nodes by their ids."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes = nodes
        self.pushed: list[Message] = []
        self._ids = count()
        self._replies: dict[str, tuple[int, Message]] = {}

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [i for i, node in self.nodes.items() if node.online]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=i, name=self.nodes[i].name) for i in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message {next(self._ids)}"
            self.pushed.append(message)
            node = self.nodes[message.metadata.dst_node_id]
            if not node.online:
                continue
            ids.append(message.metadata.message_id)
            reply = node.answer(message, message.metadata.dst_node_id)
            if reply is not None:
                due = len(self.pushed) + node.late(message)
                self._replies[ids[-1]] = (due, reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [
            i for i in message_ids if i in self._replies and self._replies[i][0] <= len(self.pushed)
        ]
        return [crossed(self._replies.pop(i)[1]) for i in ready]
