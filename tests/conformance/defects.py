"""Ways to get the protocol wrong: each is planted in a copy of the peer in Go, and has to be found by the vectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Defect:
    """A change of the peer's sources.

    name: what goes wrong.
    file: which of the sources.
    old, new: the change; `old` is in the file exactly once.
    vectors: those that find it, by their names or the beginnings of their names.
    conversation: the test of conversations that finds it, where no vector can: "cut", "killed", "ends" or "made up".
    """

    name: str
    file: str
    old: str
    new: str
    vectors: tuple[str, ...] = ()
    conversation: str = ""

    def plant(self, sources: Path) -> None:
        """Change a copy of the sources."""
        path = sources / self.file
        text = path.read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1:
            raise LookupError(f"{self.name!r} does not fit any more: its text is in {self.file} {found} times")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def _defects() -> Iterator[Defect]:
    frames, session, streams, remote, peer = "frames.go", "session.go", "streams.go", "remote.go", "peer.go"
    envelope = "envelope.go"
    # Packets and frames
    yield Defect(
        "a packet of size 0 is passed over",
        frames,
        "if announced == 0 {",
        "if announced == 0 {\n\t\treturn nil, nil\n\t}\n\tif false {",
        ("[P-02]",),
    )
    yield Defect("no limit", frames, "if announced > limit {", "if false {", ("[P-03]", "[P-04]"))
    yield Defect("the limit before the IDENT for ever", session, "limit = maxFrame //", "//", ("[P-04]",))
    yield Defect(
        "the limit is off by one", frames, "maxFrameBeforeIdent = 4096 ", "maxFrameBeforeIdent = 4095 ", ("[P-04]",)
    )
    yield Defect(
        "unknown types close",
        frames,
        "\treturn nil, nil\n}\n\nfunc parseHello",
        '\treturn nil, breach("unknown")\n}\n\nfunc parseHello',
        ("[P-05]",),
    )
    yield Defect("frames may be too long", frames, "err == nil && len(rest) > 0", "false && len(rest) > 0", ("[P-06]",))
    yield Defect(
        "any ident", frames, "len(payload) < 1 || len(payload) > 255 || !utf8.Valid(payload)", "false", ("[P-08]",)
    )
    yield Defect(
        "unknown flags have a meaning", frames, "uint8(h.Flags & flagsStream)", "uint8(min(h.Flags, 5))", ("[P-07]",)
    )
    yield Defect(
        "later versions are too long",
        frames,
        "frame, _, err := atLeast[hello](payload)",
        "frame, err := exactly[hello](payload)",
        ("[P-12]",),
    )
    yield Defect("any HELLO", frames, "case frame.MaxFrame < 33 || frame.Window == 0:", "case false:", ("[P-13]",))
    yield Defect(
        "sent below may be lower than first seq", frames, "frame.SentBelow < frame.FirstSeq", "false", ("[P-33]",)
    )
    yield Defect("the data of a batch may end early", frames, "if len(rest) > 0 {", "if false {", ("[P-60]",))
    yield Defect(
        "the last seq",
        frames,
        "frame.Seq > lastSeq-uint64(len(frame.Contents))",
        "frame.Seq+uint64(len(frame.Contents))-1 < frame.Seq",
        ("[P-65]",),
    )
    # Sessions
    yield Defect("any VERSION", session, "if frame.Number != 1 {", "if false {", ("[P-19]",))
    yield Defect(
        "a second HELLO",
        session,
        "c.state == awaitIdent && c.hello == nil",
        "c.state == awaitIdent",
        ("[P-20] a second HELLO",),
    )
    yield Defect(
        "BEGIN of a legacy peer",
        session,
        "case begin, messages, ack, skip, goodbye:\n\t\treturn c.state == extended",
        "case begin, messages, ack, skip, goodbye:\n\t\treturn c.state >= extended",
        ("[P-21]",),
    )
    yield Defect(
        "MESSAGE of a netcomm peer",
        session,
        "case message:\n\t\treturn c.state == legacy",
        "case message:\n\t\treturn c.state >= extended",
        ("[P-54] MESSAGE from a netcomm",),
    )
    yield Defect("no answer to PING", session, "c.pongs++", "", ("[P-46]",))
    yield Defect("one PONG for two PINGs", session, "c.pongs++", "c.pongs = 1", ("[P-46]",))
    yield Defect(
        "PING before BEGIN has no answer",
        session,
        "case ping, pong:\n\t\treturn c.state == extended",
        "case ping, pong:\n\t\treturn c.established",
        ("[P-23]",),
    )
    yield Defect(
        "no REFUSE",
        session,
        "if c.hello != nil {\n\t\twords",
        "if false {\n\t\twords",
        ("[P-20] a second HELLO", "[P-31]"),
    )
    yield Defect(
        "the last words are not sent", session, "return append(out, c.lastWords...)", "return out", ("[P-19]", "[P-31]")
    )
    yield Defect(
        "a refusal is passed over", session, 'c.end(nil, fmt.Sprintf("refused', '_ = (fmt.Sprintf("refused', ("[P-17]",)
    )
    yield Defect(
        "it closes while the other side still speaks",
        session,
        "for err := error(nil); err == nil; {",
        "for err := error(nil); err == nil && false; {",
        ("[P-31]",),
    )
    # Who replaces whom
    yield Defect("its own ident", peer, "if ident == p.ident {", "if false {", ("[P-51]",))
    yield Defect(
        "the connector does not matter",
        peer,
        "a.Connector == b.Connector && a.Connector != 0",
        "a.Connector == b.Connector && false",
        ("[P-48]",),
    )
    yield Defect(
        "the second connection always wins",
        peer,
        "case sameConnector(first, c) || p.winsOver(c, first):",
        "case true:",
        ("[P-49]",),
    )
    yield Defect(
        "the second connection never wins",
        peer,
        "case sameConnector(first, c) || p.winsOver(c, first):",
        "case false:",
        ("[P-48]",),
    )
    # What comes in
    yield Defect("every epoch is known", streams, "s == nil || s.epoch != frame.Epoch:", "s == nil:", ("[P-26]",))
    yield Defect(
        "what came on an earlier connection is forgotten",
        streams,
        "s == nil || s.epoch != frame.Epoch:",
        "s == nil || s.epoch != frame.Epoch || !s.begun:",
        ("[P-27]",),
    )
    yield Defect("a second BEGIN", streams, "case s.begun:\n", "case s.begun && false:\n", ("[P-26]",))
    yield Defect(
        "an unknown epoch begins at 0",
        streams,
        "handedSeq: first, receivedSeq: first",
        "handedSeq: 0, receivedSeq: 0",
        ("[P-27]",),
    )
    yield Defect(
        "an unknown epoch begins at sent below",
        streams,
        "first := frame.FirstSeq",
        "first := frame.SentBelow",
        ("[P-27]",),
    )
    yield Defect("a first seq ahead is not minded", streams, "case s.receivedSeq < first:", "case false:", ("[P-27]",))
    yield Defect("a gap is not minded", streams, "case seq > s.receivedSeq:", "case false:", ("[P-31]",))
    yield Defect("duplicates are taken", streams, "case seq < s.receivedSeq:", "case false:", ("[P-30]",))
    yield Defect("duplicates are not acknowledged", streams, "s.ackDue = true // the", "// the", ("[P-30]",))
    yield Defect(
        "streams of an earlier connection go on",
        remote,
        "r.in[number].begun, r.in[number].ackDue = false, false",
        "",
        ("[P-32] what was begun",),
    )
    yield Defect("SKIP moves back", remote, "err == nil && frame.NextSeq > s.receivedSeq", "err == nil", ("[P-42]",))
    yield Defect("SKIP has no effect", remote, "err == nil && frame.NextSeq > s.receivedSeq", "false", ("[P-42]",))
    yield Defect(
        "of a batch, only the first message", remote, "i < len(frame.Contents); i++", "i < 1; i++", ("[P-59]",)
    )
    yield Defect(
        "a batch is dropped if it begins with a duplicate",
        remote,
        "for i := 0; err == nil && i < len(frame.Contents); i++",
        "for i := 0; err == nil && i < len(frame.Contents) && frame.Seq >= s.receivedSeq-uint64(i); i++",
        ("[P-59] of a BATCH",),
    )
    yield Defect(
        "one stream's messages are acknowledged on the other",
        remote,
        "ack{uint8(number), s.epoch",
        "ack{uint8(number / 2), s.epoch",
        ("[P-36]",),
    )
    yield Defect(
        "acknowledged when it has arrived",
        remote,
        "s.epoch, s.handedSeq, s.receivedSeq",
        "s.epoch, s.receivedSeq, s.receivedSeq",
        conversation="killed",
    )
    # What goes out, as far as it shows
    yield Defect("any ACK", streams, "case frame.ReceivedSeq > s.sentBelow:", "case false:", ("[P-38]",))
    yield Defect("an ACK of another epoch counts", streams, "case frame.Epoch != s.epoch:", "case false:", ("[P-39]",))
    yield Defect("no mark", streams, "markedBelow: frame.SentBelow", "markedBelow: 0", conversation="killed")
    yield Defect(
        "a batch has one uuid", remote, "frame.UUID.plus(uint64(i))", "frame.UUID.plus(0*uint64(i))", conversation="cut"
    )
    # What goes out, as an echo shows it
    yield Defect(
        "messages before the answer to BEGIN",
        remote,
        "if s != nil && s.answered && number != bulk {",
        "if s != nil && s.begun && number != bulk {",
        ("[P-28] nothing",),
    )
    yield Defect(
        "what has arrived is sent again",
        streams,
        "s.countBelow(frame.ReceivedSeq)\n",
        "s.countBelow(frame.NextSeq)\n",
        ("[P-28] what has arrived",),
    )
    yield Defect(
        "nothing is sent again", streams, "s.countBelow(frame.ReceivedSeq)\n", "len(s.queue)\n", ("[P-37]", "[P-61]")
    )
    yield Defect(
        "what was acknowledged is kept",
        streams,
        "s.queue[:s.countBelow(frame.NextSeq)]",
        "s.queue[:0]",
        ("[P-28] what has arrived",),
    )
    yield Defect("sent below is first seq", streams, "first, s.sentBelow}", "first, first}", ("[P-37]",))
    yield Defect(
        "an epoch for each connection",
        streams,
        "s.begun, s.answered, s.sent, s.inFlight, s.resentBelow =",
        "s.epoch++\n\ts.begun, s.answered, s.sent, s.inFlight, s.resentBelow =",
        ("[P-37]",),
    )
    yield Defect("no SKIP", streams, "if first.seq != s.expected {", "if false {", ("[P-41]",))
    yield Defect(
        "no window", remote, "case next.size() > room && s.inFlight > 0:", "case false:", ("[P-45] a window of two",)
    )
    yield Defect(
        "only envelope and data count for the window",
        frames,
        "return dataPacketBytes + len(c.Envelope",
        "return len(c.Envelope",
        ("[P-45] a window of two",),
    )
    yield Defect(
        "what has arrived does not count for the window",
        streams,
        "s.inFlight = bytesOf(s.queue[:s.sent])",
        "",
        ("[P-45] what has arrived",),
    )
    yield Defect(
        "the window is never opened again",
        streams,
        "s.inFlight -= bytesOf(handedOver[:min(s.sent, len(handedOver))])",
        "",
        ("[P-45] a window of two",),
    )
    yield Defect("no max frame", remote, "case next.size()-5 > limit,", "case", ("[P-14]",))
    yield Defect("sent again in a BATCH", streams, "first.seq >= s.resentBelow && behind", "behind", ("[P-61]",))
    yield Defect(
        "no window in HELLO", session, "maxFrame, p.window, p.flags()}", "maxFrame, 0, p.flags()}", ("[P-46]",)
    )
    # Five streams
    yield Defect(
        "two streams alone", frames, "uint8(h.Flags & flagsStream)", "uint8(h.Flags & flagDurable)", ("[P-09] all",)
    )
    yield Defect(
        "any stream",
        frames,
        'number >= streamCount || streamNames[number] == ""',
        "number >= streamCount",
        ("[P-09] BEGIN of stream 3",),
    )
    yield Defect(
        "one window for all streams",
        remote,
        "next.size() > room && s.inFlight > 0",
        "next.size()+r.out[volatile].inFlight > room && r.out[volatile].inFlight+s.inFlight > 0",
        ("[P-45] each stream",),
    )
    yield Defect(
        "everything goes out by the streams of plain messages",
        streams,
        "uint32(s.number)}}",
        "uint32(s.number & 1)}}",
        ("[P-45] each stream", "[P-87]"),
    )
    yield Defect(
        "an ACK settles the other streams, too",
        remote,
        'r.tellEnd("delivered", handedOver...)\n\treturn err',
        "for _, other := range r.out {\n\t\tif other != nil && other.answered && len(handedOver) > 0 {\n\t\t\t"
        "other.queue, other.sent = nil, 0\n\t\t}\n\t}\n\treturn err",
        ("[P-28] what was acknowledged in one",),
    )
    yield Defect("any size in BULK", remote, "s.number == bulk && len(next.Data) > maxBulkBytes", "false", ("[P-87]",))
    # Envelopes
    yield Defect(
        "an envelope is data",
        frames,
        "case head.Flags&flagEnvelope != 0: // [P-69]",
        "case false:",
        ("[P-69] a message",),
    )
    yield Defect(
        "everything has an envelope",
        frames,
        "case head.Flags&flagEnvelope != 0: // [P-69]",
        "case true:",
        ("[P-69] data that only looks",),
    )
    yield Defect(
        "DATA with the flag of a BATCH", frames, "case head.Flags&flagEnvelopes != 0:", "case false:", ("[P-70] DATA",)
    )
    yield Defect(
        "an envelope for all, or one for each, whatever comes first",
        frames,
        "\t\tif each {\n\t\t\treturn",
        "\t\tif false {\n\t\t\treturn",
        ("[P-70] BATCH",),
    )
    yield Defect(
        "more bytes than values", envelope, "len(in.left) > 0 && !has(hasLater)", "false", ("[P-71] more bytes",)
    )
    yield Defect(
        "an envelope that is cut",
        envelope,
        "if size > uint64(len(r.left)) {",
        "if size = min(size, uint64(len(r.left))); false {",
        ("[P-71] an envelope that ends in its subject", "[P-71] an envelope of 2 bytes", "[P-71] headers"),
    )
    yield Defect("texts of no byte", envelope, "if size == 0 {", "if false {", ("[P-72] an empty", "[P-72] a header"))
    yield Defect(
        "texts that are not UTF-8",
        envelope,
        "!utf8.Valid(taken)",
        "false && !utf8.Valid(taken)",
        ("[P-72] a subject", "[P-72] a header whose"),
    )
    yield Defect("two headers of one key", envelope, "if keys[one.Key] {", "if false {", ("[P-73] two",))
    yield Defect(
        "what a later version adds is wrong",
        envelope,
        "len(in.left) > 0 && !has(hasLater)",
        "len(in.left) > 0",
        ("[P-74]",),
    )
    yield Defect(
        "what a later version adds is passed on", envelope, "e.Fields &^= hasLater //", "//", ("[P-74] what a later",)
    )
    yield Defect(
        "id and ref do not count up",
        frames,
        "ofAll.plus(uint64(i)), rest",
        "ofAll.plus(0 * uint64(i)), rest",
        ("[P-75] with",),
    )
    yield Defect(
        "an envelope for all is that of the first alone",
        frames,
        "if each { // [P-76]",
        "if i > 0 {\n\t\t\tone.Envelope = nil\n\t\t}\n\t\tif each { // [P-76]",
        ("[P-75] with",),
    )
    yield Defect("envelopes of a BATCH are data", frames, "if each { // [P-76]", "if false {", ("[P-76] of a BATCH",))
    yield Defect(
        "an envelope does not count",
        frames,
        "len(c.Envelope.encode()) + len(c.Data)",
        "len(c.Data)",
        ("[P-14] the envelope", "[P-45] an envelope", "[P-77]"),
    )
    yield Defect(
        "an envelope is sent once",
        streams,
        "contents[i] = m.content\n",
        "contents[i] = m.content\n\t\tm.Envelope = nil\n",
        ("[P-79]",),
    )
    # GOODBYE
    yield Defect(
        "GOODBYE is passed over",
        session,
        'c.remote.goodbye(c.hello)\n\t\tc.end(nil, "the other side\'s process ends")',
        "",
        ("[P-83]",),
    )
    yield Defect(
        "what follows GOODBYE counts",
        session,
        'c.end(nil, "the other side\'s process ends")',
        'c.pongs++; c.end(packet(typePong, nil), "late")',
        ("[P-83]",),
    )
    yield Defect("the process that has ended comes again", session, "c.remote.hasEnded(c)", "false", ("[P-84]",))
    yield Defect(
        "each process that ends is gone for ever",
        remote,
        "from.Flags&flagMadeUp != 0",
        "from.Flags != 1",
        ("[P-85]",),
    )
    yield Defect(
        "unknown flags of HELLO have a meaning",
        remote,
        "from.Flags&flagMadeUp != 0",
        "from.Flags != 0",
        ("[P-85]",),
    )
    yield Defect(
        "no GOODBYE at the end",
        remote,
        "append(append(r.begins(), r.acks()...), packet(typeGoodbye, nil)...)",
        "append(r.begins(), r.acks()...)",
        conversation="ends",
    )
    yield Defect("an ident is never made up", peer, "return flagMadeUp", "return 0", conversation="ends")
    yield Defect(
        "nothing is discarded for an ident that was made up",
        remote,
        "from.Flags&flagMadeUp != 0",
        "false",
        conversation="made up",
    )


DEFECTS = tuple(_defects())
