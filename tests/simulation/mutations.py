"""Defects to be planted in netcomm, one at a time, to see whether the oracle finds them.

Each replaces one piece of the source of one function, which must be there exactly once: where netcomm has changed, the
catalogue has to follow. `python -m tests.simulation --plant NAME --seeds 0..1000` looks for a schedule that shows one.
"""

import importlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tests.simulation.schedule import FIRST_WITH_STREAMS, Result, run


@dataclass(frozen=True)
class Mutation:
    """A change of the source of a function.

    name: what goes wrong.
    where: `module:Class.function`, in the package.
    old, new: the change.
    seed: of a schedule that shows it, where it is far to the first one; that changes with the simulator.
    symptom: words of the violations that show it; others may come of it as well.
    first: where the search for a seed begins.
    """

    name: str
    where: str
    old: str
    new: str
    seed: int | None = None
    symptom: str = ""
    package: str = "netcomm"
    first: int = 0

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Let netcomm be wrong for a while."""
        module_name, _, function = self.where.partition(":")
        *path, name = function.split(".")
        module = importlib.import_module(f"{self.package}.{module_name}")
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

    def shown_by(self, seeds: Iterable[int]) -> Result | None:
        """What comes of the first of these schedules that shows it, once it is planted."""
        with self.planted():
            return next(filter(self.shows, map(run, seeds)), None)

    def shows(self, result: Result) -> bool:
        return result.violation is not None and self.symptom in result.violation


def _catalogue() -> Iterator[Mutation]:
    inbox, outbox = "protocol.inbox:Inbox", "protocol.outbox:Outbox"
    stream, durable = "protocol.out_stream:OutStream", "protocol.durable_out_stream:DurableOutStream"
    messaging, session = "protocol.messaging:Messaging", "protocol.session:Session"
    sessions, peers = "protocol.sessions:Sessions", "protocol.remote_peer:RemotePeers"
    peer, sync = "protocol.remote_peer:RemotePeer", "protocol.storage_sync:StorageSync"
    node, queue = "protocol.node:Node", "protocol.storage_queue:StorageQueue"
    # The receiver
    yield Mutation(
        "acknowledged before the callbacks",
        f"{inbox}.accept",
        "state.next_seq = next_seq\n",
        "state.next_seq = state.handed_seq = next_seq; state.ack_due = True\n",
    )
    yield Mutation(
        "acknowledged before the position is stored",
        f"{inbox}.mark_handled",
        "return Position(epoch, next_seq)",
        "self.acknowledge(stream, epoch, next_seq); return Position(epoch, next_seq)",
        seed=203,
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
        "state.next_seq = next_seq",
        "state.next_seq = next_seq + 1",
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
    yield Mutation("stored positions not restored", f"{sync}.restore", ".inbox.restore(stream, position)", "")
    yield Mutation(
        "a message too many counted as handed over",
        f"{peer}.mark_handled",
        "received.runs[0][0] + stop",
        "received.runs[0][0] + stop + 1",
    )
    yield Mutation(
        "what waits for callbacks miscounted",
        f"{peer}.mark_handled",
        "pending_bytes[received.stream] -= received.size if whole",
        "pending_bytes[received.stream] -= received.size // 2 if whole",
    )
    yield Mutation("reading not resumed", f"{messaging}.mark_handled", "if connection.paused", "if False")
    yield Mutation(
        "reading not paused",
        "protocol.reading:Reading._most_pending",
        "if connection.session.legacy:\n        return self._limits.window_bytes",
        "if connection.session.legacy:\n        return 2**60",
        seed=511,
    )
    # The sender's streams
    yield Mutation(
        "seqs used again after a restart",
        f"{durable}.restore",
        "stream.next_seq = stream.added_below = state.next_seq",
        "stream.next_seq = stream.added_below = max(0, state.next_seq - 1)",
    )
    yield Mutation(
        "volatile epochs used again after a restart", f"{peers}.new_epoch", "epoch = self._next_epoch", "epoch = 7"
    )
    yield Mutation(
        "off by one message in the window",
        f"{stream}.take",
        "in_flight_bytes + size > window",
        "in_flight_bytes > window",
    )
    yield Mutation("expired messages sent", f"{stream}.take", "if entry.state is not QUEUED", "if False")
    yield Mutation("rejected though it fits", f"{stream}.take", "if size > largest and", "if size >= largest and")
    yield Mutation("sent before the mark", f"{durable}.may_send_below", "return self.marked_below", "return 2**64")
    yield Mutation(
        "in-flight messages lost when put back",
        f"{stream}.requeue",
        "waiting.appendleft(entry)",
        "len(returned) > 1 and waiting.appendleft(entry)",
    )
    yield Mutation(
        "order lost when put back",
        f"{stream}.requeue",
        "waiting.appendleft(entry)",
        "waiting.insert(len(returned) - 1, entry)",
    )
    yield Mutation("not sent again", f"{outbox}.acknowledge", "self._requeue(state, ack.received_seq)", "pass")
    yield Mutation(
        "in flight miscounted when put back",
        f"{stream}.requeue",
        "self.in_flight_bytes -= entry.size",
        "pass",
    )
    yield Mutation(
        "a whole run acknowledged, where part of it was handed over",
        f"{stream}.acknowledge",
        "entry.seq + entry.count > next_seq",
        "False",
    )
    yield Mutation(
        "one too many acknowledged",
        f"{outbox}.acknowledge",
        "acknowledge(ack.next_seq)",
        "acknowledge(ack.next_seq + 1)",
    )
    yield Mutation("messages in doubt expire", f"{outbox}.disconnect", "if was_legacy:", "if True:")
    yield Mutation("messages expire early", "protocol.expiry:Expiry.pop_due", "when > now", "when > now + 0.5")
    yield Mutation(
        "queued bytes leak", f"{stream}._count_ended", "self.queued_bytes -= size", "self.queued_bytes -= size // 2"
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
    yield Mutation(
        "the second frame of a run not numbered on", "protocol.encode:_add_run", "run.seq + start", "run.seq"
    )
    yield Mutation(
        "what has joined not numbered",
        "protocol.out_stream:VolatileOutStream.close_run",
        "self.next_seq = self.added_below = next_seq",
        "pass",
    )
    yield Mutation("SKIP not sent", "protocol.encode:data", "if seq > next_seq", "if False")
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
        "min(self.acknowledged_below,",
        "max(self.acknowledged_below,",
    )
    yield Mutation(
        "mark forgotten",
        f"{durable}.restore",
        "min(state.sent_below, state.next_seq)",
        "0",
    )
    yield Mutation("mark not moved on", f"{durable}.marked", "self._marking = False", "pass")
    yield Mutation("ended messages not deleted", f"{peer}.drop", "self._emit(Delete(self.ident, seqs, stream))", "pass")
    yield Mutation(
        "the epoch of an ACK is ignored", f"{outbox}.acknowledge", "if ack.epoch != state.epoch:", "if False:", seed=184
    )
    yield Mutation(
        "the storage not searched for what has expired",
        f"{durable}.add",
        "if delivery.expires_at is not None:",
        "if False:",
    )
    yield Mutation("all of a backlog in memory", f"{durable}._room", "_MAX_LOADED // share - loaded", "2**60")
    yield Mutation(
        "large messages of a backlog in memory",
        f"{durable}._room",
        "_MAX_LOADED_BYTES // share - self.loaded_bytes",
        "2**60",
    )
    yield Mutation(
        "the mark of a storage kept ahead of what it has",
        f"{node}.restore",
        "if stream.sent_below > stream.next_seq",
        "if False",
        seed=3798,
    )
    # Envelopes
    add_run = "protocol.encode:_add_run"
    yield Mutation(
        "the envelope lost when a message is sent again",
        add_run,
        "first_envelope, shared = batch.envelope",
        "first_envelope, shared = None if run.resent else batch.envelope",
    )
    yield Mutation(
        "each frame of a run with the envelope of the first",
        add_run,
        "envelope.behind(first_envelope, start)",
        "first_envelope",
    )
    yield Mutation(
        "the envelope of the message before",
        "protocol.decode:Reader._to_envelope",
        "raw != self._raw_envelope",
        "len(raw) != len(self._raw_envelope)",
    )
    yield Mutation("ids not counted on in a frame", "protocol.frames:items", "envelope.behind(index)", "envelope")
    yield Mutation("the envelope of a stored message lost", f"{sync}._deliveries_of", "envelope or None", "None")
    yield Mutation("the size of a stored message without its envelope", f"{sync}._deliveries_of", "+ len(envelope)", "")
    yield Mutation(
        "a plain message joins a run with an envelope",
        "protocol.open_run:OpenRun.of",
        "and batch.envelope is None",
        "",
    )
    yield Mutation(
        "envelopes that wait for callbacks miscounted",
        f"{peer}.mark_handled",
        "if received.envelope_bytes and not whole:",
        "if False:",
    )
    # The node
    yield Mutation(
        "a fault of one connection ends the peer",
        f"{node}.on_link",
        "except Exception as error:",
        "except KeyError as error:",
    )
    yield Mutation(
        "a fault in writing to one connection ends the peer",
        f"{node}._write",
        "except Exception as error:",
        "except KeyError as error:",
    )
    yield Mutation(
        "a connection that has failed is kept",
        f"{node}._fail",
        'self._link.abort(number, f"failed: {error!r}")',
        "pass",
        seed=66,
    )
    yield Mutation(
        "a connection that has failed is not forgotten",
        f"{node}._fail",
        "self.messaging.sessions.connection_failed(number, error, now)",
        "pass",
    )
    yield Mutation(
        "callbacks counted from the start of their batch again",
        f"{node}.on_handled",
        "self.messaging.mark_handled(received, handled, count, now)",
        "self.messaging.mark_handled(received, 0, count, now)",
    )
    yield Mutation(
        "callbacks that have returned not remembered", f"{node}.on_handled", "received.handled = count", "pass"
    )
    yield Mutation(
        "written though there is no room", f"{node}._write", "more and link.has_room(number)", "more is True", seed=5855
    )
    yield Mutation(
        "bytes that came in counted wrong",
        f"{node}._on_link",
        "messaging.sessions.buffer_updated(connection, count, now)",
        "messaging.sessions.buffer_updated(connection, count - 1, now)",
    )
    yield Mutation("requests to the storage lost", f"{node}._act_on", "storage.append(event)", "pass")
    yield Mutation(
        "what was received lost",
        f"{node}._act_on",
        "(for_extensions if extensions.claims(event) else dispatch).append(event)",
        "pass",
    )
    yield Mutation("connections not closed", f"{node}._act_on", "self._link.close(connection, farewell)", "pass")
    yield Mutation("reading goes on", f"{node}._act_on", "self._link.pause(connection, paused)", "pass")
    yield Mutation(
        "only one connection written",
        f"{node}.process_pending",
        "for number in messaging.take_writable():",
        "for number in messaging.take_writable()[:1]:",
    )
    yield Mutation(
        "nobody told that messages have ended",
        f"{node}._act_on",
        "awaited = True\n            case Close",
        "pass\n            case Close",
    )
    yield Mutation(
        "the loss of a connection not heard",
        f"{node}._on_link",
        "messaging.sessions.connection_lost(connection, reason, now)",
        "pass",
    )
    # Storage requests
    yield Mutation(
        "of two positions the first is stored",
        f"{queue}.add",
        "self._positions[ident] = position",
        "self._positions.setdefault(ident, position)",
    )
    yield Mutation("a failed request forgotten", f"{queue}.put_back", "self.add(request)", "pass")
    yield Mutation(
        "a failed request tried behind others",
        f"{queue}.put_back",
        "for request in job.requests:",
        "for request in job.requests[1:]:",
    )
    yield Mutation(
        "an answer for the wrong question",
        f"{sync}.answered",
        "durables[stream].marked(below)",
        "durables[stream].marked(below + 5)",
    )
    # Callbacks
    yield Mutation(
        "a callback's exception stops the others",
        "callbacks:Callback.__call__",
        "except BaseException as error:",
        "except KeyError as error:",
    )
    # Connections
    yield Mutation("pongs miscounted", f"{session}.probe", "self._pings.append(None)", "pass")
    yield Mutation(
        "barrier ahead of its messages",
        f"{messaging}._take",
        "sent_below = batch[-1].seq + batch[-1].count",
        "sent_below = 2**60",
    )
    yield Mutation(
        "dead connections kept",
        f"{session}.deadline",
        "+ self._limits.keepalive_wait_s",
        "+ 1000 * self._limits.keepalive_wait_s",
    )
    yield Mutation(
        "handshake without end",
        f"{session}.deadline",
        "+ self._limits.handshake_s",
        "+ 1000 * self._limits.handshake_s",
        seed=23,
    )
    yield Mutation(
        "progress of the output does not count",
        f"{session}.check",
        "if not self._ahead.has_moved():",
        "if True:",
        symptom="closes a connection that took output",
    )
    yield Mutation(
        "a challenger wins though the output progresses",
        f"{sessions}._end_challenge",
        "if ahead.has_moved() and not ahead.passed:",
        "if False:",
        symptom="closes a connection that took output",
        seed=55,
    )
    yield Mutation("challenger not read", f"{sessions}._disconnect", "self.reading.resume(challenger)", "pass")


def _discarding() -> Iterator[Mutation]:
    out, durable = "protocol.out_stream:OutStream", "protocol.durable_out_stream:DurableOutStream"
    discarding = "protocol.discarding:Discarding"
    yield Mutation(
        "what was discarded in flight does not count in the window",
        f"{out}.discard",
        "self._discarded.append((first.seq, last.seq + last.count, size))",
        "self.in_flight_bytes -= size",
        symptom="whose window has",
    )
    yield Mutation(
        "what was discarded in flight counts for ever", f"{out}.acknowledge", "if self._discarded:", "if False:"
    )
    yield Mutation(
        "what was discarded counts though the receiver does not have it",
        f"{out}.requeue",
        "if self._discarded:",
        "if False:",
    )
    yield Mutation(
        "what is discarded in the storage alone is not read",
        f"{durable}.discard",
        "self._discarded_in_storage.append(",
        "str(",
        symptom="lost",
    )
    yield Mutation(
        "more is dropped than was discarded",
        f"{durable}.read_discarded",
        "if message.seq < part.below and",
        "if",
        symptom="dropped as discarded",
        seed=125,
    )
    yield Mutation(
        "a load brings back what was discarded",
        f"{durable}.discard",
        "self.load_from = self.added_below",
        "pass",
    )
    yield Mutation(
        "messages wait for a made-up ident that has ended",
        f"{discarding}.disconnected",
        'self._give_up(peer, "it has ended")',
        "pass",
        symptom="stuck",
    )
    yield Mutation(
        "a made-up ident is given up as soon as its connection breaks",
        f"{discarding}.disconnected",
        "now + self._away_s",
        "now",
        symptom="dropped as discarded",
    )
    yield Mutation(
        "idents that were not made up are given up",
        f"{discarding}.disconnected",
        "if not peer.made_up:",
        "if False:",
        symptom="dropped as discarded",
    )
    yield Mutation(
        "an ident that has come back stays given up",
        "protocol.remote_peer:RemotePeer.admit",
        "self.ended_boot_id = self.given_up = None",
        "self.ended_boot_id = None",
        symptom="dropped as discarded",
    )
    yield Mutation(
        "messages that are sent to one that has ended wait",
        "protocol.messaging:Messaging.send",
        "if peer.given_up is not None:",
        "if False:",
        symptom="stuck",
    )
    yield Mutation(
        "nobody is told that messages in the storage were discarded",
        f"{discarding}.discard",
        "if stored:",
        "if False:",
        symptom="nobody was told",
    )


def _streams() -> Iterator[Mutation]:
    """Of the streams of the bus, what takes them, and who waits for the end of a message."""
    for mutation in (*_streams_out(), *_streams_in(), *_extensions()):
        yield replace(mutation, first=FIRST_WITH_STREAMS)


def _streams_out() -> Iterator[Mutation]:
    outbox, peer = "protocol.outbox:Outbox", "protocol.remote_peer:RemotePeer"
    stream, durable = "protocol.out_stream:OutStream", "protocol.durable_out_stream:DurableOutStream"
    sync = "protocol.storage_sync:StorageSync"
    yield Mutation(
        "one window for all streams",
        f"{outbox}._take_of",
        "stream.take(budget, receiver, self._expiry)",
        "stream.take(budget, receiver, self._expiry)"
        " if sum(out.in_flight_bytes for out in self) < receiver.window_bytes else ([], [])",
    )
    yield Mutation(
        "an ACK counts for the plain stream",
        f"{outbox}.acknowledge",
        "self.volatiles.get(ack.stream) or self.durables.get(ack.stream)",
        "self.volatiles.get(ack.stream & 1) or self.durables.get(ack.stream & 1)",
    )
    yield Mutation(
        "pieces in turn with other messages",
        f"{outbox}.add",
        "out.stream is BULK",
        "False",
        symptom="writes pieces",
    )
    yield Mutation(
        "as much of pieces in flight as of other messages",
        f"{stream}.take",
        "receiver.bulk_window_bytes if self.stream is BULK else receiver.window_bytes",
        "receiver.window_bytes",
        symptom="are in flight",
    )
    yield Mutation(
        "a stream that is opened on a connection not begun", f"{outbox}.open", "return out.begin()", "return None"
    )
    yield Mutation(
        "only plain messages sent again",
        f"{outbox}.acknowledge",
        "self._requeue(state, ack.received_seq)",
        "ack.stream > 1 or self._requeue(state, ack.received_seq)",
    )
    yield Mutation(
        "SKIP of the plain stream", "protocol.encode:data", "skip(stream, seq)", "skip(Stream(stream & 1), seq)"
    )
    yield Mutation(
        "a snakeMQ peer gets messages of the bus",
        f"{outbox}._make_receiver",
        "0 if legacy else max_packet_bytes",
        "max_packet_bytes",
        symptom="another stream",
    )
    for name, where, arguments in (
        ("loaded from", f"{durable}.wants", "Load(ident, self.load_from, _LOAD_COUNT, _MAX_LOADED_BYTES // 2"),
        ("marked in", f"{durable}.wants", "Mark(ident, self.next_seq + _MARK_AHEAD"),
        ("renewed in", f"{durable}.wants", "Renew(ident, new_epoch()"),
        ("discarded messages read in", f"{durable}.wants", "LoadDiscarded(ident, from_seq, _LOAD_COUNT"),
        ("deleted in", f"{peer}.drop", "Delete(self.ident, seqs"),
        ("deleted when delivered in", f"{peer}.deliver", "self.outbox.durables[stream].deletable_below()"),
    ):
        wanted = "stream" if where.startswith(peer) else "self.stream"
        if "LoadDiscarded" in arguments:
            arguments += ", _MAX_LOADED_BYTES // 2"
        yield Mutation(f"{name} the wrong stream", where, f"{arguments}, {wanted})", f"{arguments})")
    yield Mutation(
        "expired messages searched in the wrong stream",
        f"{sync}.find_expired",
        "wall_now, _FIND_COUNT, durable.stream",
        "wall_now, _FIND_COUNT",
    )
    yield Mutation(
        "a mark counts for another stream",
        f"{sync}.answered",
        "self._peers[ident].outbox.durables[stream].marked(below)",
        "next(iter(self._peers[ident].outbox.durables.values())).marked(below)",
    )
    yield Mutation(
        "a renewal counts for another stream",
        f"{sync}.answered",
        "peer.outbox.renew(stream, epoch)",
        "peer.outbox.renew(next(iter(peer.outbox.durables)), epoch)",
    )
    yield Mutation(
        "what may be deleted of two streams merged",
        "protocol.storage_queue:StorageQueue.add",
        "max(seq, self._deletes.get((ident, stream), 0))",
        "max([seq, *[below for key, below in self._deletes.items() if key[0] == ident]])",
    )


def _streams_in() -> Iterator[Mutation]:
    inbox, sync = "protocol.inbox:Inbox", "protocol.storage_sync:StorageSync"
    yield Mutation(
        "an ACK names the plain stream",
        f"{inbox}.due_acks",
        "Ack(stream, state.epoch",
        "Ack(Stream(stream & 1), state.epoch",
    )
    yield Mutation(
        "the position of a stream of the bus restored in another one",
        f"{sync}.restore",
        ".inbox.restore(stream, position)",
        ".inbox.restore(DURABLE, position)",
    )
    yield Mutation(
        "positions of the bus stored as those of plain messages",
        f"{inbox}.mark_handled",
        "if stream is DURABLE:",
        "if True:",
    )
    yield Mutation(
        "a full stream keeps the others from being read",
        "protocol.reading:Reading.is_full",
        "connection.owner.inbox.pending_bytes[stream] >",
        "sum(connection.owner.inbox.pending_bytes.values()) >",
        symptom="is held back",
    )
    yield Mutation(
        "rows stored without their position",
        "stores:SimulatedStorage.commit",
        "self._host_positions[key] = position",
        "pass",
        symptom="is twice in the storage",
        package="tests.simulation",
    )
    yield Mutation(
        "a position stored without its rows",
        "stores:SimulatedStorage.commit",
        "self._rows.update(log.appended)",
        "pass",
        symptom="is not in the storage",
        package="tests.simulation",
    )


def _extensions() -> Iterator[Mutation]:
    extensions, node = "protocol.extensions:Extensions", "protocol.node:Node"
    peer = "protocol.remote_peer:RemotePeer"
    yield Mutation(
        "an extension gets messages twice",
        f"{extensions}.tell",
        "self._receive(event, now)",
        "self._receive(event, now); self._receive(event, now)",
        symptom="the extension gets messages twice",
    )
    yield Mutation(
        "an extension hears late of who has come",
        f"{node}._act_on",
        "for_extensions.append(event)",
        "for_extensions.insert(0, event)",
    )
    yield Mutation(
        "a late extension does not hear of who is there",
        f"{extensions}.add",
        "extension.connected(ident, now)",
        "pass",
        symptom="the extension",
    )
    yield Mutation(
        "messages that wait for an extension lost",
        f"{extensions}.add",
        "self._untold += held",
        "pass",
        symptom="stuck",
    )
    yield Mutation(
        "of the messages that wait for an extension the last remembered",
        f"{extensions}._receive",
        "self._held.setdefault(stream, {}).setdefault(received.ident, []).append(received)",
        "self._held.setdefault(stream, {})[received.ident] = [received]",
    )
    yield Mutation(
        "messages that wait for an extension handed over to callbacks",
        f"{extensions}.claims",
        "(stream > DURABLE or stream in self._by_stream)",
        "stream in self._by_stream",
    )
    yield Mutation(
        "who waits for a message does not hear that it is dropped",
        f"{peer}.drop",
        "if self._watched:",
        "if False:",
        symptom="functions",
    )
    yield Mutation(
        "who waits for a message does not hear that it is delivered",
        f"{peer}.deliver",
        "if self._watched:",
        "if False:",
        symptom="functions",
    )
    yield Mutation(
        "one of those who wait for a message called",
        f"{peer}._call_watchers",
        "self._watched.pop(delivery, ())",
        "self._watched.pop(delivery, ())[:1]",
        symptom="functions",
    )
    yield Mutation(
        "who waits for a message that has ended waits for ever",
        "protocol.remote_peer:RemotePeers.watch",
        "if delivery.done:",
        "if False:",
        symptom="functions",
    )


def _regressions() -> Iterator[Mutation]:
    """Defects that netcomm had until a schedule showed them, as they were."""
    durable = "protocol.durable_out_stream:DurableOutStream"
    yield Mutation(
        "a challenger closed twice at the end",
        "protocol.sessions:Sessions.close_all",
        "if connection.number in self._by_number:",
        "if True:",
        symptom="KeyError",
        seed=120,
    )
    yield Mutation(
        "the receiver told of more than the storage has allowed",
        f"{durable}.begins_at",
        "min(self.first_seq(), self.marked_below)",
        "self.first_seq()",
        symptom="restored from a backup",
        seed=208,
    )
    yield Mutation(
        "arrived messages expire in the storage",
        f"{durable}.expirable_from",
        "self.in_doubt_below, self.arrived_below, self.untold_below",
        "self.in_doubt_below, self.untold_below",
        symptom="expired",
        seed=28,
    )
    yield Mutation(
        "arrived messages loaded as if they waited",
        f"{durable}.load",
        "elif delivery.seq < self.arrived_below:",
        "elif False:",
        seed=28,
    )
    yield Mutation(
        "a load overtakes its own append",
        f"{durable}.load",
        "if delivery.seq >= self.added_below:",
        "if False:",
        seed=28,
    )
    yield Mutation(
        "messages that a dead receiver may have handed over expire",
        "protocol.outbox:Outbox.connect",
        "stream.untold_below = stream.sent_below",
        "pass",
        symptom="reported as expired after it had been handed over",
        seed=2,
    )
    yield Mutation(
        "nobody asks for a mark behind places left empty",
        "protocol.messaging:Messaging.output",
        "self.storage_sync.ask(peer)  # what is first now",
        "pass  #",
        symptom="stuck",
        seed=245,
    )
    yield Mutation(
        "renewed in the storage without a mark",
        "stores:SimulatedStorage.renew",
        "epoch=epoch, sent_below=state.next_seq",
        "epoch=epoch",
        symptom="handed over twice",
        package="tests.simulation",
        seed=76,
    )
    yield Mutation(
        "marked for more than the storage has when renewed",
        f"{durable}.renew",
        "self.marked_below = self._renewal_below",
        "self.marked_below = self.next_seq",
        symptom="handed over twice",
        seed=1033,
    )
    yield Mutation(
        "what was skipped behind waiting messages never handed over",
        "protocol.inbox:Inbox.skip",
        "state.skips.append((state.next_seq, next_seq))",
        "pass",
        seed=475,
    )
    yield Mutation(
        "an epoch that comes back taken for the first one",
        "protocol.inbox:Inbox.begin",
        "if frame.epoch in self._left:",
        "if False:",
        seed=99,
    )
    yield Mutation(
        "what was discarded in flight and handled counts on the next connection",
        "protocol.outbox:Outbox.acknowledge",
        "self._requeue(state, ack.received_seq)\n    delivered = state.acknowledge(ack.next_seq)\n",
        "delivered = state.acknowledge(ack.next_seq)\n        self._requeue(state, ack.received_seq)\n"
        "    else:\n        delivered = state.acknowledge(ack.next_seq)\n",
        symptom="stuck",
        seed=464,
    )
    yield Mutation(
        "what is acknowledged while discarded messages are read stays in the storage",
        "protocol.storage_sync:StorageSync._discarded_loaded",
        "if durable.unread_below() is None:",
        "if False:",
        symptom="messages that have ended",
        seed=2631,
    )


CATALOGUE = [*_catalogue(), *_discarding(), *_streams()]
REGRESSIONS = list(_regressions())
MUTATIONS = [*CATALOGUE, *REGRESSIONS]
