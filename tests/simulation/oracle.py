"""What must be true of every message, whatever has happened."""

from typing import Any

from netcomm.message import Delivery, DeliveryState, Stream
from netcomm.wire import INFINITE_TTL
from tests.simulation.world import Violation, World


class Sent:
    """One message that a user sent, or tried to send, and all that became of it."""

    __slots__ = (
        "acceptor",
        "data",
        "deliverable",
        "delivered",
        "delivery",
        "drops",
        "handed",
        "handed_by_impostor",
        "number",
        "persistent",
        "receiver",
        "sender",
        "sent_at",
        "ttl",
        "untold",
        "uuid",
        "writes",
    )

    def __init__(self, number: int, receiver: str, data: bytes, ttl: float | None, persistent: bool, now: float):
        self.number = number
        self.uuid = number.to_bytes(16)
        self.receiver = receiver
        self.data = data
        self.ttl = ttl
        self.persistent = persistent
        self.sent_at = now
        self.sender: Any = None  # the process that tried to send it
        self.acceptor: Any = None  # the process that `send` returned in
        self.delivery: Delivery | None = None  # where the user keeps it
        self.writes = 0
        self.handed: list[Any] = []  # the processes that handed it over
        self.handed_by_impostor = False
        self.untold = False  # it was dropped, and the process died before it could say so
        self.delivered = False  # the sender was told so
        self.drops: list[tuple[Any, DeliveryState]] = []

    def __str__(self) -> str:
        kind = "persistent" if self.persistent else "transient"
        sender = self.sender.node.name if self.sender is not None else "?"
        return f"message {self.number} ({kind}, ttl {self.ttl}, {sender} to {self.receiver})"


class Oracle:
    """Is told what happens, and raises Violation as soon as something can't be right."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.messages: dict[bytes, Sent] = {}
        self._kept: list[Sent] = []  # accepted, with a Delivery that has not ended
        self._last: dict[tuple[int, str, bool], int] = {}  # by receiving process and stream: the last number

    def new_message(self, receiver: str, data: bytes, ttl: float | None, persistent: bool) -> Sent:
        number = len(self.messages) + 1
        message = Sent(number, receiver, number.to_bytes(4) + data, ttl, persistent, self.world.now)
        self.messages[message.uuid] = message
        return message

    # -- What happens -----------------------------------------------------------------------------------------

    def accepted(self, message: Sent, process: Any) -> None:
        self.world.trace(f"{process.node.name}: accepts {message}")
        message.acceptor = process
        if message.delivery is not None:
            self._kept.append(message)

    def written(self, uuids: list[bytes]) -> None:
        for uuid in uuids:
            self.messages[uuid].writes += 1

    def handed_over(
        self, process: Any, ident: str, item: tuple[int, bytes, int, int, bytes], marked: bool, stream: Stream | None
    ) -> None:
        _, uuid, ttl, flags, data = item
        message = self.messages.get(uuid)
        if message is None:
            raise Violation(f"{process.node.name} got a message that nobody has sent: {uuid.hex()}")
        node, sender = process.node, message.sender
        self.world.trace(f"{node.name}: hands over {message.number}{' (redelivered)' if marked else ''}")
        if message.receiver != node.ident or sender.node.ident != ident:
            raise Violation(f"{message} came to {node.name} as from {ident}")
        if data != message.data or flags != message.persistent or (ttl == INFINITE_TTL) != (message.ttl is None):
            raise Violation(f"{message} came with other contents")
        legacy = process.legacy or sender.legacy
        rewound = sender.node.went_back_after(message)
        if not process.legacy:
            # A process that dies right after it has told so may not have told its storage.
            told = any(other.alive and state is DeliveryState.EXPIRED for other, state in message.drops)
            if told and not rewound:
                raise Violation(f"{message} was handed over after it had been reported as expired")
            self._check_repetition(process, message, marked, rewound)
        if any(state is DeliveryState.REJECTED for _, state in message.drops):
            raise Violation(f"{message} was handed over after it had been reported as rejected")
        # Order: within one process every message, over all processes each for the first time.
        key = (id(process), ident, message.persistent)
        last = self._last.get(key, 0)
        again = process in message.handed or (legacy and message.handed) or rewound
        if message.number <= last and not again and not node.forgets:
            raise Violation(f"{message} came to {node.name} behind {last}: not in order")
        self._last[key] = max(last, message.number)
        message.handed.append(process)
        node.processes_seen[id(process)] = process
        if node.impostor:
            message.handed_by_impostor = True

    def _check_repetition(self, process: Any, message: Sent, marked: bool, rewound: bool) -> None:
        node, sender = process.node, message.sender
        if message.handed:
            if sender.legacy:
                raise Violation(f"{message} of a legacy peer was handed over twice")
            if message.handed_by_impostor or node.impostor or node.had_impostor or sender.node.had_impostor:
                return
            # A backup does not know what was sent after it was made, and a receiver that has died can't tell.
            # After two, the epoch of the first may come back: a receiver knows one epoch only.
            forgotten = sender.node.rewinds_after(message) > 1 or self._nobody_knows(message, sender.node.process)
            if not marked and not (rewound and forgotten):
                raise Violation(f"{message} was handed over twice, and not marked as redelivered")
            excused = rewound or (node.forgets and not message.persistent)
            if process in message.handed and not excused:
                raise Violation(f"{message} was handed over twice by one process")
            kept = message.delivered and message.persistent and process.storage is not None
            if kept and not (rewound or node.went_back_after(message)):
                raise Violation(f"{message} was handed over again after it had been delivered")
        elif marked:
            restarted = sender.node.incarnation > message.sender.incarnation
            has_past = process.incarnation > 1 or node.forgets or node.had_impostor or node.impostor
            has_past = has_past or sender.node.had_impostor or sender.node.went_back
            if not has_past or not (message.writes > 1 or restarted or sender.node.went_back):
                raise Violation(f"{message} is marked as redelivered, and no earlier process can have had it")

    def dropped(self, delivery: Delivery, process: Any) -> None:
        message = self.messages[delivery.uuid]
        state = delivery.state
        self.world.trace(f"{process.node.name}: drops {message.number}: {state.value}")
        if any(earlier is process for earlier, _ in message.drops):
            raise Violation(f"{message} was dropped twice")
        ended = any(earlier is not state for _, earlier in message.drops) or message.delivered
        excused = process.node.went_back_after(message) or self._nobody_knows(message, process)
        if ended and not excused:
            raise Violation(f"{message} has ended twice, as {state.value} at last")
        if message.acceptor is None and message.sender is process:
            raise Violation(f"{message} was dropped before it was accepted")
        message.drops.append((process, state))
        node = process.node
        if state is DeliveryState.EXPIRED:
            if message.ttl is None:
                raise Violation(f"{message} has expired")
            early = self.world.now < message.sent_at + message.ttl - 1e-5
            if early and not (message.persistent and node.clock_jumped):
                raise Violation(f"{message} has expired too early")
            excused = node.world_nodes[message.receiver].legacy or node.went_back_after(message)
            if message.handed and not excused and not self._nobody_knows(message, process):
                raise Violation(f"{message} was reported as expired after it had been handed over")
        elif state is DeliveryState.REJECTED:
            limit = min(node.limits.max_frame_bytes, node.world_nodes[message.receiver].limits.max_frame_bytes)
            if len(message.data) + 33 <= limit:
                raise Violation(f"{message} was rejected, and fits")
        elif state is not DeliveryState.DISCARDED or message.persistent:
            raise Violation(f"{message} was dropped as {state.value}")

    def dropped_untold(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self.messages[delivery.uuid].untold = True

    @staticmethod
    def _nobody_knows(message: Sent, process: Any) -> bool:
        """Whether the process that sent a message has died, and with it those that handed it over, or legacy ones did.

        A receiver's storage knows what it has acknowledged.
        """
        receiver = process.node.world_nodes[message.receiver]
        if receiver.had_impostor or process.node.had_impostor:
            return True
        if process is message.acceptor:
            return False
        if receiver.legacy:
            return True
        if message.delivered and receiver.storage is not None and not receiver.went_back_after(message):
            return False
        return not any(other.alive for other in message.handed)

    def look(self, process: Any) -> None:
        """Messages have ended: which, and was it time?"""
        kept = []
        for message in self._kept:
            delivery = message.delivery
            assert delivery is not None
            if not delivery.done:
                kept.append(message)
            elif delivery.state is DeliveryState.DELIVERED:
                message.delivered = True
                if not message.handed:
                    raise Violation(f"{message} counts as delivered, and was not handed over")
        self._kept = kept

    def process_ended(self, process: Any) -> None:
        self.look(process)
        for message in self._kept:
            if message.acceptor is process:
                message.delivery = None
        self._kept = [message for message in self._kept if message.acceptor is not process]

    def check_window(self, connection: Any, process: Any) -> None:
        """A process that has followed another does not know at once what that one has left in flight."""
        if connection is None or connection.peer is None or connection.peer.connection is not connection:
            return
        outbox = connection.peer.outbox
        allowed = outbox._window_bytes * (2 if process.incarnation > 1 else 1)
        if outbox.in_flight_bytes > allowed and outbox.in_flight > 1:
            raise Violation(f"{outbox.in_flight_bytes} bytes are in flight, {allowed} are allowed")

    # -- At rest ----------------------------------------------------------------------------------------------

    def at_rest(self, nodes: dict[str, Any]) -> None:
        """The world is healthy, and nothing moves any more: everything must have ended."""
        self.look(None)
        if self._kept:
            raise Violation(f"{self._kept[0]} has not ended: {self._kept[0].delivery}")
        for message in self.messages.values():
            self._check_end(message, nodes)
        for node in nodes.values():
            if not node.legacy:
                self._check_counters(node)

    def _check_end(self, message: Sent, nodes: dict[str, Any]) -> None:
        acceptor = message.acceptor
        if acceptor is None or acceptor.legacy:
            return
        node = acceptor.node
        if not message.handed and not message.drops and not message.untold:
            survives = acceptor.alive or message.persistent
            if survives and not node.went_back_after(message):
                raise Violation(f"{message} was accepted and is lost")
        delivery = message.delivery
        if delivery is not None and acceptor.alive and not node.went_back_after(message):
            delivered = delivery.state is DeliveryState.DELIVERED
            if delivered == bool(message.drops):
                raise Violation(f"{message} has ended as {delivery.state.value}, drops were {len(message.drops)}")

    @staticmethod
    def _check_counters(node: Any) -> None:
        for ident, peer in node.process.messaging._peers.items():
            outbox = peer.outbox
            counters = {"in_flight_bytes": outbox.in_flight_bytes, "pending_bytes": peer.inbox.pending_bytes}
            for stream in outbox._streams:
                name = stream.stream.name
                counters[f"{name} queued"] = stream.queued
                counters[f"{name} queued_bytes"] = stream.queued_bytes
                counters[f"{name} in flight"] = len(stream.in_flight)
                counters[f"{name} waiting"] = len(stream.waiting) - stream.empty_places
            if outbox.durable is not None:
                counters["stored"] = outbox.durable.stored
                counters["loaded_bytes"] = outbox.durable.loaded_bytes
            wrong = {name: value for name, value in counters.items() if value}
            if wrong:
                raise Violation(f"{node.name} has nothing left for {ident}, and counts {wrong}")
        if node.storage is not None and node.storage.left:
            raise Violation(f"the storage of {node.name} keeps {node.storage.left} messages that have ended")
