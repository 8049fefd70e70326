"""Defects to be planted in netcomm, to see that what is here finds them."""

from tests.simulation.mutations import Mutation

# No input of the corpus shows it: the fuzzer has to change one.
HIDDEN = "raises-at-a-pong-with-payload"

DEFECTS = {
    mutation.name: mutation
    for mutation in (
        Mutation("size-over-limit", "protocol.decode:Reader._parse", "0 < size <= limit", "0 < size <= 2 * limit"),
        Mutation(
            "struct-error-leaks",
            "protocol.decode:Reader._parse_other",
            "except struct.error:",
            "except ZeroDivisionError:",
        ),
        Mutation("split-forgets-bytes", "protocol.decode:Reader.buffer_updated", "view[end:]", "view[end:-1]"),
        Mutation(
            "durable-is-volatile",
            "protocol.decode:_last_data",
            "flags & STREAM_FLAGS",
            "0",
        ),
        Mutation(
            "streams-of-the-bus-are-plain",
            "protocol.decode:_last_data",
            "flags & STREAM_FLAGS",
            "flags & 1",
        ),
        Mutation(
            "extension-told-twice",
            "protocol.extensions:Extensions.tell",
            "self._receive(event, now)",
            "self._receive(event, now); self._receive(event, now)",
        ),
        Mutation(
            "held-messages-dropped",
            "protocol.extensions:Extensions.add",
            "self._untold += held",
            "pass",
        ),
        Mutation("sizes-believed", "protocol.decode:Reader._parse_batch", "if start + sum(sizes) != end:", "if False:"),
        Mutation(
            "envelope-longer-than-its-size",
            "protocol.envelope:decode",
            "if place > len(raw):",
            "if False:",
        ),
        Mutation(
            "bytes-behind-an-envelope",
            "protocol.envelope:decode",
            "if place < len(raw) and not fields & _LATER:",
            "if False:",
        ),
        Mutation(
            "envelope-larger-than-its-packet",
            "protocol.decode:Reader._parse_enveloped",
            "if head_end > end:",
            "if False:",
        ),
        Mutation(
            "everybody-is-a-netcomm-peer",
            "protocol.session:Session.admit",
            "self.legacy = self.remote is None",
            "self.legacy = False",
        ),
        Mutation("last-seq", "protocol.inbox:Inbox.accept", "if next_seq > _MAX_SEQ:", "if False:"),
        Mutation(
            "begin-forgets-the-position",
            "protocol.inbox:Inbox.begin",
            "if known is None or known.epoch != frame.epoch:",
            "if True:",
        ),
        Mutation(
            "never-sent-again",
            "protocol.outbox:Outbox.acknowledge",
            "self._requeue(state, ack.received_seq)",
            "state.requeue(2**64)",
        ),
        Mutation(
            HIDDEN,
            "protocol.decode:Reader._parse_other",
            "frame = parser(bytes(chunk[start:end]))",
            "frame = parser(bytes(chunk[start:end])); assert frame_type != FrameType.PONG or end == start",
        ),
    )
}
