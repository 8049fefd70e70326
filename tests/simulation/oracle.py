"""What must be true of every message, whatever has happened."""

from hashlib import sha256
from math import ceil
from typing import Any

from netcomm.message import BULK, DURABLE, QUEUED, Delivery, DeliveryState, Stream
from netcomm.protocol import durable_out_stream as memory
from netcomm.protocol.envelope import Envelope, encode
from netcomm.protocol.frames import INFINITE_TTL, Item, packet_size
from tests.simulation.world import End, Violation, World

# Streams whose positions outlive a receiver that has a storage.
_KEPT = (DURABLE, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)
# So long may it take until messages that are over are found in a storage, some at a time.
_EXPIRY_S = 4.0


class Sent:
    """One message that a user sent, or tried to send, and all that became of it."""

    __slots__ = (
        "accepted_as",
        "acceptor",
        "calls",
        "data",
        "deliverable",
        "delivered",
        "delivery",
        "drops",
        "envelope",
        "first_written_at",
        "handed",
        "handed_by_impostor",
        "number",
        "packed_envelope",
        "receiver",
        "sender",
        "sent_at",
        "stream",
        "ttl",
        "untold",
        "uuid",
        "watches",
    )

    def __init__(self, number: int, receiver: str, data: bytes, ttl: float | None, stream: Stream, now: float):
        self.number = number
        self.uuid = number.to_bytes(16)
        self.receiver = receiver
        self.data = data
        self.ttl = ttl
        self.stream = stream
        self.sent_at = now
        self.envelope: Envelope | None = None
        self.packed_envelope: bytes | None = None
        self.sender: Any = None  # the process that tried to send it
        self.acceptor: Any = None  # the process that `send` returned in
        self.accepted_as = 0  # its number among all that were accepted
        self.delivery: Delivery | None = None  # where the user keeps it
        self.first_written_at: float | None = None
        self.handed: list[Any] = []  # the processes that handed it over
        self.handed_by_impostor = False
        self.untold = False  # it was dropped, and the process died before it could say so
        self.delivered = False  # the sender was told so
        self.drops: list[tuple[Any, DeliveryState]] = []
        self.watches = self.calls = 0  # how many functions are to be called once it has ended, and were

    @property
    def persistent(self) -> bool:
        """Whether it is kept in a storage."""
        return self.stream.durable

    def put_into(self, envelope: Envelope) -> None:
        """Send it with an envelope."""
        self.envelope = envelope
        self.packed_envelope = encode(envelope)

    @property
    def size(self) -> int:
        """What a frame has of it, in bytes: the data and the envelope."""
        return len(self.data) + len(self.packed_envelope or b"")

    def __str__(self) -> str:
        kind = "persistent" if self.persistent else "transient"
        kind = kind if self.stream <= DURABLE else self.stream.name
        sender = self.sender.node.name if self.sender is not None else "?"
        return f"message {self.number} ({kind}, ttl {self.ttl}, {sender} to {self.receiver})"


class Oracle:
    """Is told what happens, and raises Violation as soon as something can't be right."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.messages: dict[bytes, Sent] = {}
        self.accepted_count = 0
        self._kept: list[Sent] = []  # accepted, with a Delivery that has not ended
        self._mortal: list[Sent] = []  # accepted, with a ttl, and perhaps still waiting
        self._last: dict[tuple[int, str, Stream], int] = {}  # by receiving process and stream: the last number

    def new_message(self, receiver: str, size: int, ttl: float | None, stream: Stream) -> Sent:
        """A message whose payload no other has, and no part of it another part."""
        number = len(self.messages) + 1
        data = b"".join(sha256(b"%d %d" % (number, part)).digest() for part in range(size // 32 + 1))[:size]
        message = Sent(number, receiver, data, ttl, stream, self.world.now)
        self.messages[message.uuid] = message
        return message

    # -- What happens -----------------------------------------------------------------------------------------

    def accepted(self, message: Sent, process: Any) -> None:
        self.world.trace(f"{process.node.name}: accepts {message}")
        message.acceptor = process
        self.accepted_count += 1
        message.accepted_as = self.accepted_count
        if message.ttl and not process.legacy:
            self._mortal.append(message)
        if message.delivery is not None:
            self._kept.append(message)

    def written(self, process: Any, uuids: list[bytes], stream: Stream | None) -> None:
        for uuid in uuids:
            message = self.messages[uuid]
            if stream is not message.stream and (stream is not None or message.stream > DURABLE):
                raise Violation(f"{message} is sent in another stream: {stream}")
            has_ended = any(earlier is process for earlier, _ in message.drops)
            if has_ended or (not process.legacy and self._is_discarded(message, process)):
                raise Violation(f"{message} is sent, and had ended")
            if message.first_written_at is None:
                message.first_written_at = self.world.now

    def handed_over(self, process: Any, ident: str, item: Item, marked: bool, stream: Stream | None) -> None:
        _, uuid, ttl, flags, data, envelope = item
        message = self.messages.get(uuid)
        if message is None:
            raise Violation(f"{process.node.name} got a message that nobody has sent: {uuid.hex()}")
        node, sender = process.node, message.sender
        self.world.trace(f"{node.name}: hands over {message.number}{' (redelivered)' if marked else ''}")
        if message.receiver != node.ident or sender.node.ident != ident:
            raise Violation(f"{message} came to {node.name} as from {ident}")
        if data != message.data or flags & 1 != message.persistent or not self._ttl_fits(ttl, message):
            raise Violation(f"{message} came with other contents")
        if stream is not message.stream and not (stream is None and message.stream <= DURABLE):
            raise Violation(f"{message} came in another stream: {stream}")
        legacy = process.legacy or sender.legacy
        if envelope != (None if legacy else message.envelope):
            raise Violation(f"{message} came in another envelope: {envelope}")
        rewound = sender.node.went_back_after(message)
        if not process.legacy:
            # A process that dies right after it has told so may not have told its storage.
            told = any(other.alive and state is DeliveryState.EXPIRED for other, state in message.drops)
            if told and not (rewound or node.had_impostor or sender.node.had_impostor):
                raise Violation(f"{message} was handed over after it had been reported as expired")
            self._check_repetition(process, message, marked, rewound)
        if any(state is DeliveryState.REJECTED for _, state in message.drops):
            raise Violation(f"{message} was handed over after it had been reported as rejected")
        # Order: within one process every message, over all processes each for the first time.
        key = (id(process), ident, message.stream)
        last = self._last.get(key, 0)
        again = process in message.handed or (legacy and message.handed) or rewound
        if message.number <= last and not again and not node.forgets:
            raise Violation(f"{message} came to {node.name} behind {last}: not in order")
        self._last[key] = max(last, message.number)
        message.handed.append(process)
        node.processes_seen[id(process)] = process
        if node.impostor:
            message.handed_by_impostor = True

    @staticmethod
    def _ttl_fits(ttl: int, message: Sent) -> bool:
        # What is left is a difference of times, and may be a trifle more than was given.
        return ttl == INFINITE_TTL if message.ttl is None else ttl <= ceil(message.ttl + 1e-6)

    def _check_repetition(self, process: Any, message: Sent, marked: bool, rewound: bool) -> None:
        node, sender = process.node, message.sender
        if message.handed:
            if sender.legacy:
                raise Violation(f"{message} of a legacy peer was handed over twice")
            if message.handed_by_impostor or node.impostor or node.had_impostor or sender.node.had_impostor:
                return
            # A backup does not know what was sent after it was made, and a receiver that has died can't tell.
            # After two, the epoch of the first may come back: a receiver that has died knows one epoch only.
            forgotten = sender.node.rewinds > 1 or self._nobody_knows(message, sender.node.process)
            if not marked and not (rewound and forgotten):
                raise Violation(f"{message} was handed over twice, and not marked as redelivered")
            excused = rewound or (node.forgets and not message.persistent)
            if process in message.handed and not excused:
                raise Violation(f"{message} was handed over twice by one process")
            kept = message.delivered and message.stream in _KEPT and process.storage is not None
            if kept and not (rewound or node.went_back_after(message)):
                raise Violation(f"{message} was handed over again after it had been delivered")
        elif marked and not self._earlier_may_have_had(process, message):
            raise Violation(f"{message} is marked as redelivered, and no earlier process can have had it")

    @staticmethod
    def _earlier_may_have_had(process: Any, message: Sent) -> bool:
        """Whether a message may have been handed over before a process that gets it has met its sender."""
        node, sender = process.node, message.sender
        if node.forgets or node.impostor or node.had_impostor or sender.node.had_impostor or sender.node.went_back:
            return True
        met_at, incarnation = process.met[sender.node.ident]
        written_before = message.first_written_at is not None and message.first_written_at < met_at
        # What was in its storage when a sender started may have been sent.
        return process.incarnation > 1 and (written_before or message.sender.incarnation < incarnation)

    def dropped(self, delivery: Delivery, process: Any) -> None:
        message = self.messages[delivery.uuid]
        state = delivery.state
        self.world.trace(f"{process.node.name}: drops {message.number}: {state.value}")
        if delivery.data != message.data:
            raise Violation(f"{message} was dropped without its payload")
        if any(earlier is process for earlier, _ in message.drops):
            raise Violation(f"{message} was dropped twice")
        ended = any(earlier is not state for _, earlier in message.drops) or message.delivered
        excused = process.node.went_back_after(message) or self._nobody_knows(message, process)
        # Whoever gives a message up asks no receiver whether it has told an earlier process.
        excused = excused or (state is DeliveryState.DISCARDED and process is not message.acceptor)
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
            # What an earlier process has stored is as old as the clock says, also where that was set since.
            if early and not (message.persistent and node.clock_jumped and message.sender is not process):
                raise Violation(f"{message} has expired too early")
            excused = node.world_nodes[message.receiver].legacy or node.went_back_after(message)
            if message.handed and not excused and not self._nobody_knows(message, process):
                raise Violation(f"{message} was reported as expired after it had been handed over")
        elif state is DeliveryState.REJECTED:
            receiver = node.world_nodes[message.receiver]
            limit = min(node.limits.max_frame_bytes, receiver.limits.max_frame_bytes)
            if message.size + 33 <= limit and not (receiver.legacy and message.stream > DURABLE):
                raise Violation(f"{message} was rejected, and fits")
        elif state is not DeliveryState.DISCARDED or not self._may_be_discarded(message, process):
            raise Violation(f"{message} was dropped as {state.value}")

    # -- Functions that wait for the end of a message ---------------------------------------------------------

    def called(self, message: Sent, delivery: Delivery, process: Any) -> None:
        """A function that waits for the end of a message is called."""
        self.world.trace(f"{process.node.name}: says that {message.number} has ended")
        message.calls += 1
        if delivery.uuid != message.uuid:
            raise Violation(f"who waits for {message} hears of another one")
        if not delivery.done:
            raise Violation(f"who waits for {message} is called, and it has not ended")
        if message.calls > message.watches:
            raise Violation(f"who waits for {message} is called twice")

    # -- Messages that are given up ---------------------------------------------------------------------------

    @staticmethod
    def _is_discarded(message: Sent, process: Any) -> bool:
        """Whether the user of a process has given a message up."""
        return 0 < message.accepted_as <= process.discards.get(message.receiver, 0)

    def _may_be_discarded(self, message: Sent, process: Any) -> bool:
        if self._is_discarded(message, process) or (process.ending and not message.persistent):
            return True
        # Stored by a process that died before it could say so, and found by the next one.
        unsaid = message.acceptor is None and message.sender is not process
        if unsaid and message.sent_at <= process.discarded_at.get(message.receiver, -1.0):
            return True
        receiver = process.node.world_nodes[message.receiver]
        if not receiver.made_up:
            return False
        if receiver.said_goodbye:
            return True
        is_connected = process.messaging.peers.is_connected(message.receiver)
        if not is_connected and self.is_long_away(process, message.receiver):
            return True
        # Given up then, and read from the storage after the receiver has come back.
        return message.persistent and message.sent_at <= process.back_at.get(message.receiver, -1.0)

    def is_long_away(self, process: Any, ident: str) -> bool:
        """Whether an ident that has no connection has had none for so long that it may be given up."""
        # Nobody tells of a connection that was not established.
        since = process.disconnected_at.get(ident, 0.0)
        return bool(self.world.now >= since + process.node.limits.made_up_ident_away_s - 1e-5)

    def check_discarded(self, process: Any, ident: str) -> None:
        """Everything for a receiver has just been given up."""
        peer = process.messaging.peers.get(ident)
        if peer is not None and (peer.outbox.queued or peer.outbox.has_waiting):
            raise Violation(f"{process.node.name} has discarded what waits for {ident}, and something waits")
        for message in self._kept:
            if message.acceptor is process and message.receiver == ident and not message.delivery.done:  # type: ignore[union-attr]
                raise Violation(f"{message} was discarded, and has not ended")

    @staticmethod
    def check_pending(process: Any, ident: str, pending: int) -> None:
        """A receiver holds no more of one stream than its window, or one message; an earlier sender's may be there."""
        node, sender = process.node, process.node.world_nodes[ident]
        excused = sender.legacy or sender.went_back or sender.had_impostor or node.had_impostor or node.impostor
        if excused or sender.incarnation > 1 or sender.forgets or node.forgets:
            return
        window = min(node.limits.window_bytes, sender.limits.window_bytes)
        if pending > max(window, packet_size(min(node.limits.max_frame_bytes, sender.limits.max_frame_bytes))):
            raise Violation(f"{pending} bytes from {ident} wait at {node.name}, whose window has {window}")

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

    def check_told(self, process: Any) -> None:
        """A thread may wait for each message that has ended, and was to be told."""
        for message in self._kept:
            if message.sender is process and message.delivery is not None and message.delivery.done:
                raise Violation(f"{message} has ended, and nobody was told")

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
                if delivery.data is not None:
                    raise Violation(f"{message} was delivered, and its payload is kept")
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
        """A process that has followed another does not know at once what that one has left in flight.

        That may be one message that is larger than the window. After a restored backup, what counts as arrived may have
        expired instead.
        """
        if process.node.went_back:
            return
        if connection is None or connection.peer is None or connection.peer.connection is not connection:
            return
        outbox = connection.peer.outbox
        receiver = process.node.world_nodes[connection.peer.ident]
        allowed = process.node.limits.window_bytes
        if not receiver.legacy:
            allowed = min(allowed, receiver.limits.window_bytes)
        if process.incarnation > 1:
            allowed += max(allowed, packet_size(process.node.limits.max_frame_bytes))
        for stream in outbox:  # BULK is the last of them
            if stream.stream is BULK:
                allowed = min(allowed, process.node.limits.bulk_window_bytes)
            if stream.in_flight_bytes > allowed and sum(entry.count for entry in stream.in_flight) > 1:
                raise Violation(
                    f"{stream.in_flight_bytes} bytes of {stream.stream.name} are in flight, {allowed} are allowed"
                )

    @staticmethod
    def check_turn(connection: Any, process: Any, streams: set[Stream]) -> None:
        """Messages of some streams were just written: those of the stream BULK only where no other could be."""
        if BULK not in streams or connection is None or connection.session.legacy:
            return
        peer = connection.peer
        if len(streams) > 1:
            raise Violation(f"{process.node.name} writes pieces for {peer.ident} with other messages")
        window = min(process.node.limits.window_bytes, connection.session.remote.window_bytes)
        for stream in peer.outbox:
            if stream.stream is BULK or stream.receiver_next is None:
                continue
            first = next((entry for entry in stream.waiting if entry.state is QUEUED), None)
            if first is None or first.seq >= stream.may_send_below():
                continue
            if not stream.in_flight_bytes or stream.in_flight_bytes + first.first_size <= window:
                raise Violation(f"{process.node.name} writes pieces, and {stream.stream.name} waits for {peer.ident}")

    @staticmethod
    def check_progress(connection: Any, process: Any) -> None:
        """A connection that has nothing to send has nothing that waits, unless somebody is asked for something."""
        if connection is None or connection.peer is None or connection.peer.connection is not connection:
            return
        for stream in connection.peer.outbox:
            if stream.in_flight_bytes:
                continue  # an acknowledgement will come
            waiting = len(stream.waiting) - stream.empty_places
            if isinstance(stream, memory.DurableOutStream):
                if stream._marking or stream._loading or stream.renewing:
                    continue
                waiting += stream.stored
            if waiting and stream.receiver_next is not None:
                raise Violation(f"stuck: {process.node.name} has {waiting} messages for {connection.peer.ident}")

    def check_patience(self, process: Any, end: End) -> None:
        """A connection is being closed, for it is time: not, while a ping is still on its way to the other side.

        For a handshake, there is a time of its own.
        """
        pipe = end.outgoing
        if not end.established or end.ping_behind is None or pipe.taken >= end.ping_behind:
            return
        silence = self.world.now - pipe.taken_at
        if pipe.taken_at and silence < process.node.limits.keepalive_wait_s:
            raise Violation(f"{process.node.name} closes a connection that took output {silence:.3f} s ago")

    @staticmethod
    def check_handed_over(process: Any, ident: str) -> None:
        """Where nothing waits for callbacks or for the storage, all that has come may be acknowledged."""
        core, sender = process.messaging, process.node.world_nodes[ident]
        inbox = core.peers[ident].inbox
        # A sender that comes back with an epoch that it has left is told of more than there is.
        if not inbox.is_empty or ident in core.storage_sync._unstored or sender.went_back:
            return
        for stream, state in inbox._streams.items():
            if state.handed_seq != state.next_seq:
                raise Violation(f"{process.node.name} never acknowledges {ident} {stream.name} {state.next_seq - 1}")

    @staticmethod
    def check_memory(process: Any) -> None:
        """However much is stored, only a part of it may be in memory."""
        for ident, durable in [
            (peer.ident, out) for peer in process.messaging.peers for out in peer.outbox.durables.values()
        ]:
            loaded = len(durable.waiting) + len(durable.in_flight)
            most = max(memory._MAX_LOADED, memory._MAX_LOADED // 2 + memory._LOAD_COUNT)
            if loaded > most:
                raise Violation(f"{process.node.name} has {loaded} messages for {ident} in memory, {most} are allowed")
            most = (
                memory._MAX_LOADED_BYTES + packet_size(0) * memory._LOAD_COUNT + 2 * process.node.limits.max_frame_bytes
            )
            if durable.loaded_bytes > most:
                raise Violation(f"{process.node.name} has {durable.loaded_bytes} bytes for {ident} in memory")

    def check_expiries(self) -> None:
        """What certainly was not sent expires in time, connected or not."""
        waiting = []
        for message in self._mortal:
            node = message.acceptor.node
            ended = message.drops or message.untold or not message.acceptor.alive
            # After a renewal, all of a stream counts as sent.
            if ended or message.first_written_at is not None or node.went_back:
                continue
            over = self.world.now > message.sent_at + message.ttl + _EXPIRY_S
            if over and not (message.persistent and not node.storage_ready(_EXPIRY_S)):
                raise Violation(f"{message} should have expired")
            waiting.append(message)
        self._mortal = waiting

    # -- At rest ----------------------------------------------------------------------------------------------

    def at_rest(self, nodes: dict[str, Any]) -> None:
        """The world is healthy, and nothing moves any more: everything must have ended."""
        self.look(None)
        if self._kept:
            raise Violation(f"{self._kept[0]} has not ended: {self._kept[0].delivery}")
        for message in self.messages.values():
            self._check_end(message, nodes)
            if message.acceptor is not None and message.acceptor.alive and message.calls != message.watches:
                raise Violation(f"{message} has ended, and of {message.watches} functions {message.calls} were called")
        for node in nodes.values():
            if not node.legacy and not node.gone:
                self._check_counters(node)
            if node.storage is not None:
                self._check_rows(node)

    def _check_end(self, message: Sent, nodes: dict[str, Any]) -> None:
        acceptor = message.acceptor
        if acceptor is None or acceptor.legacy:
            return
        node = acceptor.node
        if not message.handed and not message.drops and not message.untold:
            survives = acceptor.alive or (message.persistent and not node.made_up)
            if message.accepted_as <= node.discards.get(message.receiver, 0) or nodes[message.receiver].made_up:
                survives = acceptor.alive  # a process that ends deletes what it has not told of
            # An impostor of the receiver, which knows nothing, keeps a backup from being recognised.
            unseen = node.went_back and nodes[message.receiver].had_impostor
            if survives and not (node.went_back_after(message) or unseen):
                raise Violation(f"{message} was accepted and is lost")
        delivery = message.delivery
        if delivery is not None and acceptor.alive and not node.went_back_after(message):
            delivered = delivery.state is DeliveryState.DELIVERED
            if delivered == bool(message.drops):
                raise Violation(f"{message} has ended as {delivery.state.value}, drops were {len(message.drops)}")

    def _check_rows(self, node: Any) -> None:
        """What a host keeps is stored in one step with the positions: each message once."""
        stored: set[bytes] = set()
        for row in node.storage.host_rows:
            message = self.messages[row.data]
            sender = message.sender.node
            excused = sender.went_back_after(message) or sender.had_impostor or node.had_impostor
            if row.data in stored and not excused:
                raise Violation(f"{message} is twice in the storage of {node.name}")
            stored.add(row.data)
        for message in self.messages.values():
            if message.receiver != node.ident or message.stream not in _KEPT[1:] or not message.delivered:
                continue
            if message.uuid not in stored and not (node.went_back_after(message) or node.had_impostor):
                raise Violation(f"{message} was delivered, and is not in the storage of {node.name}")

    @staticmethod
    def _check_counters(node: Any) -> None:
        for peer in node.process.messaging.peers:
            ident, outbox = peer.ident, peer.outbox
            counters = {"pending_bytes": sum(peer.inbox.pending_bytes.values())}
            for stream in outbox:
                name = stream.stream.name
                counters[f"{name} in_flight_bytes"] = stream.in_flight_bytes
                if not peer.connected:  # it has not said how much it has of what was discarded in flight
                    counters[f"{name} in_flight_bytes"] -= stream._discarded_bytes
                counters[f"{name} queued"] = stream.queued
                counters[f"{name} queued_bytes"] = stream.queued_bytes
                counters[f"{name} in flight"] = len(stream.in_flight)
                counters[f"{name} waiting"] = len(stream.waiting) - stream.empty_places
            for durable in outbox.durables.values():
                counters[f"{durable.stream.name} stored"] = durable.stored
                counters[f"{durable.stream.name} loaded_bytes"] = durable.loaded_bytes
            wrong = {name: value for name, value in counters.items() if value}
            if wrong:
                raise Violation(f"{node.name} has nothing left for {ident}, and counts {wrong}")
        if node.storage is not None and node.storage.left:
            raise Violation(f"the storage of {node.name} keeps {node.storage.left} messages that have ended")
