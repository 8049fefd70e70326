"""`Extension`: what takes part in a peer's protocol beside its callbacks: topics, queues and services; files; asyncio.

It is told what happens where it happens, in the protocol, and is as free of I/O: so it can be driven by all that drives
a `Node`. What needs a thread, or calls code of the program, it leaves to the dispatcher: see `Messaging.call_soon`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Protocol

from netcomm.message import Stream
from netcomm.protocol.events import Received
from netcomm.protocol.messaging import Messaging


class NodePort(Protocol):
    """What an extension uses of the node that it is attached to."""

    messaging: Messaging

    def on_handled(self, received: Received, count: int, now: float) -> bool:
        """The first `count` of these messages, in all, are done with; returns whether that is news."""


class Extension(ABC):
    """Takes the messages of some streams, in place of the callbacks.

    A node calls these methods under the lock that guards it. They are short, and neither block nor raise; they run no
    code of the program. They may use the node: send by `node.messaging.send`, let a function be called with no lock
    held by `node.messaging.call_soon`, and say by `node.on_handled` that messages are done with.

    streams: whose messages it takes. A stream has one extension at the most.
    """

    streams: Collection[Stream] = ()

    def attached(self, node: NodePort, now: float) -> None:  # noqa: B027 - not everyone uses the node
        """It takes part from now on; called once, before any other method."""

    @abstractmethod
    def receive(self, received: Received, now: float) -> None:
        """Messages have come in one of its streams, in their order.

        They are acknowledged when `node.on_handled` is told that they are done with, here or at any later time. Until
        then, they count in the stream's window. They are named in the order in which they came: an acknowledgement
        stands for all messages of the stream before it, too.
        """

    def connected(self, ident: str, now: float) -> None:  # noqa: B027 - most need not know
        """Messages can flow to a peer."""

    def disconnected(self, ident: str, now: float) -> None:  # noqa: B027 - most need not know
        """Messages can't flow to a peer any more."""
