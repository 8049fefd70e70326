"""Defects to be planted in netcomm, one at a time, to see whether the oracle finds them.

Each replaces one piece of the source of one function, which must be there exactly once: where netcomm has changed, the
catalogue has to follow.
"""

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutation:
    """name: what goes wrong; where: `module.Class.function`; old, new: the change of its source."""

    name: str
    where: str
    old: str
    new: str

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Let netcomm be wrong for a while."""
        module_name, *path, name = self.where.split(".")
        module = importlib.import_module(f"netcomm.{module_name}")
        owner: Any = module
        for part in path:
            owner = getattr(owner, part)
        original = vars(owner)[name]
        source = textwrap.dedent(inspect.getsource(getattr(original, "__func__", original)))
        found = source.count(self.old)
        if found != 1:
            raise LookupError(f"{self.name!r} does not fit any more: its text is in {self.where} {found} times")
        source = source.replace(self.old, self.new).replace("super()", f"super({'.'.join(path)}, self)")
        scope: dict[str, Any] = {}
        exec(compile(source, f"<{self.name}>", "exec"), vars(module), scope)
        setattr(owner, name, scope[name])
        try:
            yield
        finally:
            setattr(owner, name, original)


def _catalogue() -> Iterator[Mutation]:
    inbox, stream, durable, outbox = "inbox.Inbox", "outbox.OutStream", "outbox.DurableOutStream", "outbox.Outbox"
    messaging, session = "messaging.Messaging", "session.Session"
    # The receiver
    yield Mutation(
        "acknowledged before the callbacks",
        f"{inbox}.accept",
        "state.next_seq = next_seq\n",
        "state.next_seq = state.handed_seq = next_seq; state.ack_due = True\n",
    )
    yield Mutation(
        "acknowledged before the position is stored",
        f"{inbox}.hand_over",
        "return Position(epoch, next_seq)",
        "self.acknowledge(stream, Position(epoch, next_seq)); return Position(epoch, next_seq)",
    )
    yield Mutation(
        "acknowledged as handed over when it has arrived",
        f"{inbox}.due_acks",
        "state.handed_seq, state.next_seq",
        "state.next_seq, state.next_seq",
    )
    yield Mutation(
        "acknowledged as arrived when it was handed over",
        f"{inbox}.due_acks",
        "state.handed_seq, state.next_seq",
        "state.handed_seq, state.handed_seq",
    )
    yield Mutation("position forgotten on reconnect", f"{inbox}.disconnect", "state.begun = False", "state.epoch = -1")
    yield Mutation(
        "first message after a SKIP dropped",
        f"{inbox}.skip",
        "max(state.next_seq, next_seq)",
        "max(state.next_seq, next_seq + 1)",
    )
    yield Mutation(
        "not marked as redelivered",
        f"{inbox}.begin",
        "frame.first_seq, frame.first_seq, frame.sent_below)",
        "frame.first_seq, frame.first_seq, frame.first_seq)",
    )
    yield Mutation(
        "not marked as redelivered behind a restored position",
        f"{inbox}.begin",
        "known.redelivered_below = frame.sent_below",
        "pass",
    )
    yield Mutation(
        "too much marked as redelivered",
        f"{inbox}.begin",
        "frame.first_seq, frame.first_seq, frame.sent_below)",
        "frame.first_seq, frame.first_seq, frame.sent_below + 3)",
    )
    yield Mutation("BEGIN not answered", f"{inbox}.begin", "known.begun = known.ack_due = True", "known.begun = True")
    yield Mutation("stored positions not restored", f"{messaging}.restore", "(ident, position)", "(ident)")
    yield Mutation(
        "a message too many counted as handed over",
        f"{messaging}.hand_over",
        "items[-1][0] + 1",
        "items[-1][0] + 2",
    )
    yield Mutation(
        "what waits for callbacks miscounted",
        f"{messaging}.hand_over",
        "pending_bytes -= _size(items)",
        "pending_bytes -= _size(items[1:])",
    )
    yield Mutation("reading not resumed", f"{messaging}.hand_over", "if connection.paused", "if False")
    yield Mutation("reading not paused", f"{messaging}._took", "if peer.inbox.pending_bytes >", "if 0 >")
    # The sender's streams
    yield Mutation(
        "seqs used again after a restart",
        f"{durable}.restore",
        "stream.next_seq = stream.added_below = state.next_seq",
        "stream.next_seq = stream.added_below = max(0, state.next_seq - 1)",
    )
    yield Mutation(
        "volatile epochs used again after a restart", f"{messaging}._new_epoch", "epoch = self._next_epoch", "epoch = 7"
    )
    yield Mutation(
        "off by one message in the window",
        f"{outbox}._take_from",
        "in_flight_bytes + size > window",
        "in_flight_bytes > window",
    )
    yield Mutation("expired messages sent", f"{outbox}._take_from", "if delivery.state is not QUEUED", "if False")
    yield Mutation(
        "rejected though it fits", f"{outbox}._take_from", "> self._max_packet_bytes", ">= self._max_packet_bytes"
    )
    yield Mutation("sent before the mark", f"{durable}.may_send", "seq < self.marked_below", "True")
    yield Mutation(
        "in-flight messages lost when put back",
        f"{stream}.requeue",
        "extendleft(reversed(returned))",
        "extendleft(reversed(returned[1:]))",
    )
    yield Mutation(
        "order lost when put back", f"{stream}.requeue", "extendleft(reversed(returned))", "extendleft(returned)"
    )
    yield Mutation("not sent again", f"{outbox}.acknowledge", "self._requeue(state, ack.received_seq)", "pass")
    yield Mutation(
        "in flight miscounted when put back",
        f"{outbox}._requeue",
        "self.in_flight_bytes -= sum([delivery.size for delivery in returned])",
        "pass",
    )
    yield Mutation("one too many acknowledged", f"{stream}.acknowledge", ".seq < next_seq", ".seq <= next_seq")
    yield Mutation("messages in doubt expire", f"{outbox}.disconnect", "if self._legacy:", "if True:")
    yield Mutation("messages expire early", f"{outbox}.expire", "when <= now", "when <= now + 0.5")
    yield Mutation(
        "queued bytes leak", f"{stream}.settle", "self.queued_bytes -= size", "self.queued_bytes -= size // 2"
    )
    yield Mutation(
        "loaded bytes leak", f"{durable}.load", "self.loaded_bytes += delivery.size", "self.loaded_bytes += 1"
    )
    yield Mutation(
        "BEGIN skips what waits",
        f"{stream}.first_seq",
        "self.waiting[0].seq if self.waiting else self.added_below",
        "self.added_below",
    )
    yield Mutation("SKIP not sent", "wire.data", "if seq > next_seq", "if False")
    # The sender's storage
    yield Mutation("not renewed after a restored backup", f"{outbox}.acknowledge", "state.renewing = True", "pass")
    yield Mutation("not marked after a renewal", f"{durable}.renew", "self.sent_below = self.next_seq", "pass")
    yield Mutation(
        "loaded twice",
        f"{durable}.load",
        "self.load_from = delivery.seq + 1\n        self.stored -= 1",
        "self.load_from = delivery.seq\n        self.stored -= 1",
    )
    yield Mutation("loading stops", f"{durable}.load", "self._loading = False", "pass")
    yield Mutation(
        "too much deleted",
        f"{durable}.deletable_below",
        "min(self.acknowledged_below, self.load_from)",
        "max(self.acknowledged_below, self.load_from)",
    )
    yield Mutation(
        "mark forgotten",
        f"{durable}.restore",
        "min(state.sent_below, state.next_seq)",
        "0",
    )
    yield Mutation("mark not moved on", f"{durable}.marked", "self._marking = False", "pass")
    yield Mutation("ended messages not deleted", f"{messaging}._drop", "if stored:", "if False:")
    # Connections
    yield Mutation("pongs miscounted", f"{session}.probe", "self._pings.append(None)", "pass")
    yield Mutation(
        "barrier ahead of its messages", f"{messaging}.output", "sent_below = batch[-1].seq + 1", "sent_below = 2**60"
    )
    yield Mutation("dead connections kept", f"{session}.check", "if self._ping_sent_at is not None:", "if False:")
    yield Mutation(
        "handshake without end",
        f"{session}.deadline",
        "+ self._limits.handshake_s",
        "+ 1000 * self._limits.handshake_s",
    )
    yield Mutation("challenger not read", f"{messaging}._disconnect", "self._pause(challenger, False)", "pass")


MUTATIONS = list(_catalogue())
