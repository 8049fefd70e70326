// What a peer keeps of one other peer, by its ident, over all connections: streams both ways, and what is handed over.

package main

import (
	"crypto/rand"
	"time"
)

const (
	batchBytes  = 64 << 10 // a BATCH gets no larger
	queueBytes  = 64 << 20 // so much may wait to be sent, or to be acknowledged, before Send blocks
	legacyBytes = 1 << 20  // so much is sent to a legacy peer before it confirms any
)

// Received is a message as its user sees it.
type Received struct {
	Ident       string
	Stream      uint8
	UUID        [16]byte
	TTL         uint32 // in seconds; 0xffffffff: for ever
	Redelivered bool   // an earlier process may have had it
	content
}

// An arrival waits to be handed over: a message, or, without one, a SKIP.
type arrival struct {
	from    *inStream // nil: a legacy peer has none
	below   uint64    // behind it, all messages of the stream below this seq have been handed over
	message *Received
}

type remote struct {
	peer    *Peer
	ident   string
	conn    *conn // the one that is admitted
	waiting *conn // waits until the first has shown whether it lives

	in  [streamCount]*inStream
	out [streamCount]*outStream // nil as long as it has had no message

	queued      int         // bytes of messages that have not ended
	unconfirmed []*outgoing // sent to a legacy peer; in this order

	arrived [streamCount]arrivals

	ended *[16]byte // the boot id of the process that was connected last, once that has said GOODBYE [P-84]
	gone  bool      // it has, and its ident was made up: no message waits for it [P-85]
}

// Arrivals are what came in one stream, and is not handed over. While a user's function takes its time over a message
// of one stream, those of the others are handed over.
type arrivals struct {
	waiting     []arrival
	size        int
	full        bool // too much waits: nothing is read on
	handingOver bool
}

func newRemote(peer *Peer, ident string) *remote {
	r := &remote{peer: peer, ident: ident}
	r.out[volatile] = newOutStream(volatile) // there is one stream at least to begin [P-23]
	return r
}

// connect says that a connection was admitted.
func (r *remote) connect(c *conn) {
	r.conn, r.unconfirmed, r.ended, r.gone = c, nil, nil, false
	for number := range r.in {
		if r.in[number] != nil {
			r.in[number].begun, r.in[number].ackDue = false, false
		}
		if r.out[number] != nil {
			r.out[number].restart()
		}
	}
}

// -- Out ----------------------------------------------------------------------------------------------------------

// send queues messages, with uuids that follow each other from the given one on.
func (r *remote) send(number uint8, first uuid, deadline time.Time, contents []content) {
	if r.out[number] == nil {
		r.out[number] = newOutStream(number)
	}
	s := r.out[number]
	for i, one := range contents {
		s.queue = append(s.queue, &outgoing{s, s.nextSeq, first.plus(uint64(i)), deadline, one})
		s.nextSeq++
		r.queued += one.size()
	}
	if r.gone {
		r.tellEnd("discarded", s.discard()...)
	}
}

// tellEnd says how messages have ended.
func (r *remote) tellEnd(how string, ms ...*outgoing) {
	for _, m := range ms {
		r.queued -= m.size()
		r.peer.tell(Event{Event: how, Ident: r.ident, Stream: streamNames[m.stream.number], UUID: m.uuid[:]})
	}
}

// begins makes the BEGINs of streams that have none on this connection.
func (r *remote) begins() (out []byte) {
	for _, s := range r.out {
		if s != nil && !s.begun {
			out = append(out, packet(typeBegin, s.begin())...)
		}
	}
	return out
}

func (r *remote) acknowledge(frame ack) error {
	s := r.out[frame.Stream]
	if s == nil {
		s = &outStream{} // never begun
	}
	handedOver, err := s.acknowledge(frame)
	r.tellEnd("delivered", handedOver...)
	return err
}

// acks makes the ACKs that are due.
func (r *remote) acks() (out []byte) {
	for number, s := range r.in {
		if s != nil && s.ackDue {
			s.ackDue = false
			out = append(out, packet(typeAck, ack{uint8(number), s.epoch, s.handedSeq, s.receivedSeq})...)
		}
	}
	return out
}

// compose appends what there is to say to a netcomm peer: first ACKs, then messages, the streams by turns, and those of
// BULK only where no other can go.
func (r *remote) compose(out []byte) []byte {
	out = append(out, r.acks()...)
	for more := true; more && len(out) < chunkBytes; {
		more = false
		for number, s := range r.out {
			if s != nil && s.answered && number != bulk {
				if frames := r.nextFrames(s); frames != nil {
					out, more = append(out, frames...), true
				}
			}
		}
		if s := r.out[bulk]; s != nil && s.answered && !more {
			frames := r.nextFrames(s)
			out, more = append(out, frames...), frames != nil
		}
	}
	return out
}

// farewell makes the last words of a process that ends in order [P-82].
func (r *remote) farewell() []byte {
	return append(append(r.begins(), r.acks()...), packet(typeGoodbye, nil)...)
}

// goodbye says that the process of the other peer has ended in order.
func (r *remote) goodbye(from *hello) {
	r.ended, r.gone = &from.BootID, from.Flags&flagMadeUp != 0
	for _, s := range r.out {
		if s != nil && r.gone {
			r.tellEnd("discarded", s.discard()...)
		}
	}
}

// nextFrames makes the frames of the next message, or of several in a BATCH; nil where none may go now.
func (r *remote) nextFrames(s *outStream) []byte {
	now, hello := time.Now(), r.conn.hello
	limit := int(min(hello.MaxFrame, maxFrame)) - 1 // of a payload
	for s.sent < len(s.queue) {
		next := s.queue[s.sent]
		switch room := int(hello.Window) - s.inFlight; {
		case next.size()-5 > limit, s.number == bulk && len(next.Data) > maxBulkBytes:
			s.drop()
			r.tellEnd("rejected", next) // [P-14] [P-87]
		case next.ttl(now) == 0:
			s.drop()
			r.tellEnd("expired", next)
		case next.size() > room && s.inFlight > 0:
			return nil
		default:
			return s.frames(now, s.run(now, min(limit, batchBytes), room))
		}
	}
	return nil
}

// composeLegacy appends messages for a legacy peer, and behind them a PING: its PONG confirms them [P-55]. It gets
// plain messages alone [P-54], without their envelopes [P-78].
func (r *remote) composeLegacy(out []byte) []byte {
	count, now := 0, time.Now()
	for _, s := range r.out {
		for s != nil && s.sent < len(s.queue) && len(out) < chunkBytes && s.inFlight < legacyBytes {
			next := s.queue[s.sent]
			if s.number > durable {
				s.drop()
				r.tellEnd("rejected", next)
				continue
			}
			if next.ttl(now) == 0 {
				s.drop()
				r.tellEnd("expired", next)
				continue
			}
			out = append(out, packet(typeMessage, messageHead{next.uuid, next.ttl(now), uint32(s.number)}, next.Data)...)
			s.sent++
			s.inFlight += next.size()
			s.sentBelow = max(s.sentBelow, next.seq+1)
			r.unconfirmed = append(r.unconfirmed, next)
			count++
		}
	}
	if count > 0 {
		out = append(out, packet(typePing, nil)...)
		r.conn.legacyPings = append(r.conn.legacyPings, count)
	}
	return out
}

// confirm says that a legacy peer has run its callbacks for the first messages that it was sent.
func (r *remote) confirm(count int) {
	confirmed := r.unconfirmed[:count]
	r.unconfirmed = r.unconfirmed[count:]
	for _, m := range confirmed {
		m.stream.queue = m.stream.queue[1:]
		m.stream.sent--
		m.stream.inFlight -= m.size()
	}
	r.tellEnd("delivered", confirmed...)
}

// -- In -----------------------------------------------------------------------------------------------------------

func (r *remote) begin(frame begin) (err error) {
	r.in[frame.Stream], err = r.in[frame.Stream].begin(frame)
	return err
}

// stream tells what comes in by this number; an error where it was not begun on this connection.
func (r *remote) stream(number uint8) (*inStream, error) {
	if s := r.in[number]; s != nil && s.begun {
		return s, nil
	}
	return nil, breachOf("P-32", "the %s stream was not begun", streamNames[number])
}

func (r *remote) take(frame messages) error {
	number := frame.stream()
	s, err := r.stream(number)
	for i := 0; err == nil && i < len(frame.Contents); i++ { // a BATCH is its messages [P-59]
		var fresh bool
		seq := frame.Seq + uint64(i)
		if fresh, err = s.accept(seq); fresh {
			id, mark := frame.UUID.plus(uint64(i)), seq < s.markedBelow
			r.arrive(number, arrival{s, seq + 1, &Received{r.ident, number, id, frame.TTL, mark, frame.Contents[i]}})
		}
	}
	return err
}

func (r *remote) skip(frame skip) error {
	s, err := r.stream(frame.Stream)
	if err == nil && frame.NextSeq > s.receivedSeq { // [P-42]
		s.receivedSeq = frame.NextSeq
		r.arrive(frame.Stream, arrival{from: s, below: frame.NextSeq})
	}
	return err
}

func (r *remote) takeLegacy(frame message) {
	number := uint8(frame.Flags & flagDurable)
	r.arrive(number, arrival{message: &Received{r.ident, number, frame.UUID, frame.TTL, false, content{nil, frame.Data}}})
}

func (a arrival) size() int {
	if a.message == nil {
		return 0
	}
	return a.message.content.size()
}

func (r *remote) arrive(number uint8, a arrival) {
	stream := &r.arrived[number]
	stream.waiting = append(stream.waiting, a)
	stream.size += a.size()
	if !stream.handingOver {
		stream.handingOver = true
		go r.handOver(stream)
	}
}

// isFull reports whether more than the window of a stream waits, until half of that is handed over: only a legacy peer
// sends so much, or a careless one.
func (r *remote) isFull() (full bool) {
	window := int(r.peer.window)
	for number := range r.arrived {
		stream := &r.arrived[number]
		stream.full = stream.size > window || (stream.full && stream.size > window/2)
		full = full || stream.full
	}
	return full
}

// handOver calls the user's function for what has arrived in a stream, one message after the other, as long as there
// are any.
func (r *remote) handOver(stream *arrivals) {
	r.peer.mu.Lock()
	defer r.peer.mu.Unlock()
	for ; len(stream.waiting) > 0; r.peer.changed.Broadcast() {
		a := stream.waiting[0]
		stream.waiting = stream.waiting[1:]
		if a.message != nil {
			r.peer.mu.Unlock()
			r.peer.handle(*a.message)
			r.peer.mu.Lock()
		}
		stream.size -= a.size()
		if a.from != nil {
			a.from.handed(a.below) // of an epoch that has ended, nobody reads it [P-66]
		}
	}
	stream.handingOver = false
}

func newUUID() (made uuid) {
	rand.Read(made[:])
	return made
}
