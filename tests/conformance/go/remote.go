// What a peer keeps of one other peer, by its ident, over all connections: the streams both ways, and who is handed what.

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
	Data        []byte
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
	inFlight    int         // bytes sent and not acknowledged [P-45]
	unconfirmed []*outgoing // sent to a legacy peer; in this order

	arrived     []arrival
	arrivedSize int
	full        bool // too much has arrived: nothing is read on
	handingOver bool
}

func newRemote(peer *Peer, ident string) *remote {
	r := &remote{peer: peer, ident: ident}
	r.out[volatile] = newOutStream(volatile) // there is one stream at least to begin [P-23]
	return r
}

// connect says that a connection was admitted.
func (r *remote) connect(c *conn) {
	r.conn, r.inFlight, r.unconfirmed = c, 0, nil
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
func (r *remote) send(number uint8, first uuid, deadline time.Time, data [][]byte) {
	if r.out[number] == nil {
		r.out[number] = newOutStream(number)
	}
	s := r.out[number]
	for i, one := range data {
		s.queue = append(s.queue, &outgoing{s, s.nextSeq, first.plus(uint64(i)), deadline, one})
		s.nextSeq++
		r.queued += dataPacketBytes + len(one)
	}
}

// ended says that a message has ended, delivered or not.
func (r *remote) ended(how string, ms ...*outgoing) {
	for _, m := range ms {
		r.queued -= dataPacketBytes + len(m.data)
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
	wasAnswered, onTheWay := s.answered, s.sent
	handedOver, err := s.acknowledge(frame)
	if wasAnswered {
		r.inFlight -= bytesOf(handedOver[:min(onTheWay, len(handedOver))])
	} else {
		r.inFlight += bytesOf(s.queue[:s.sent])
	}
	r.ended("delivered", handedOver...)
	return err
}

func bytesOf(ms []*outgoing) (total int) {
	for _, m := range ms {
		total += dataPacketBytes + len(m.data)
	}
	return total
}

// compose appends what there is to say to a netcomm peer: first ACKs, then messages, the streams by turns.
func (r *remote) compose(out []byte) []byte {
	for number, s := range r.in {
		if s != nil && s.ackDue {
			s.ackDue = false
			out = append(out, packet(typeAck, ack{uint8(number), s.epoch, s.handedSeq, s.receivedSeq})...)
		}
	}
	for more := true; more && len(out) < chunkBytes; {
		more = false
		for _, s := range r.out {
			if s != nil && s.answered {
				if frames := r.nextFrames(s); frames != nil {
					out, more = append(out, frames...), true
				}
			}
		}
	}
	return out
}

// nextFrames makes the frames of the next message, or of several in a BATCH; nil where none may go now.
func (r *remote) nextFrames(s *outStream) []byte {
	now, hello := time.Now(), r.conn.hello
	limit := int(min(hello.MaxFrame, maxFrame)) - 1 // of a payload
	for s.sent < len(s.queue) {
		next := s.queue[s.sent]
		switch room := int(hello.Window) - r.inFlight; {
		case 32+len(next.data) > limit:
			s.drop()
			r.ended("rejected", next) // [P-14]
		case next.ttl(now) == 0:
			s.drop()
			r.ended("expired", next)
		case dataPacketBytes+len(next.data) > room && r.inFlight > 0:
			return nil
		default:
			run := s.run(now, min(limit, batchBytes), room)
			r.inFlight += bytesOf(run)
			return s.frames(now, run)
		}
	}
	return nil
}

// composeLegacy appends messages for a legacy peer, and behind them a PING: its PONG confirms them [P-55].
func (r *remote) composeLegacy(out []byte) []byte {
	count, now := 0, time.Now()
	for _, s := range r.out {
		for s != nil && s.sent < len(s.queue) && len(out) < chunkBytes && r.inFlight < legacyBytes {
			next := s.queue[s.sent]
			if next.ttl(now) == 0 {
				s.drop()
				r.ended("expired", next)
				continue
			}
			out = append(out, packet(typeMessage, messageHead{next.uuid, next.ttl(now), next.flags()}, next.data)...)
			s.sent++
			s.sentBelow = max(s.sentBelow, next.seq+1)
			r.unconfirmed = append(r.unconfirmed, next)
			r.inFlight += dataPacketBytes + len(next.data)
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
	r.inFlight -= bytesOf(confirmed)
	for _, m := range confirmed {
		m.stream.queue = m.stream.queue[1:]
		m.stream.sent--
	}
	r.ended("delivered", confirmed...)
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
	for i := 0; err == nil && i < len(frame.Data); i++ { // a BATCH is its messages [P-59]
		var fresh bool
		seq := frame.Seq + uint64(i)
		if fresh, err = s.accept(seq); fresh {
			id := frame.UUID.plus(uint64(i))
			r.arrive(arrival{s, seq + 1, &Received{r.ident, number, id, frame.TTL, seq < s.markedBelow, frame.Data[i]}})
		}
	}
	return err
}

func (r *remote) skip(frame skip) error {
	s, err := r.stream(frame.Stream)
	if err == nil && frame.NextSeq > s.receivedSeq { // [P-42]
		s.receivedSeq = frame.NextSeq
		r.arrive(arrival{from: s, below: frame.NextSeq})
	}
	return err
}

func (r *remote) takeLegacy(frame message) {
	r.arrive(arrival{message: &Received{r.ident, frame.stream(), frame.UUID, frame.TTL, false, frame.Data}})
}

func (a arrival) size() int {
	if a.message == nil {
		return 0
	}
	return dataPacketBytes + len(a.message.Data)
}

func (r *remote) arrive(a arrival) {
	r.arrived = append(r.arrived, a)
	r.arrivedSize += a.size()
	if !r.handingOver {
		r.handingOver = true
		go r.handOver()
	}
}

// isFull reports whether more than the window waits, until half of that is handed over: only a legacy peer sends so
// much, or a careless one.
func (r *remote) isFull() bool {
	window := int(r.peer.window)
	r.full = r.arrivedSize > window || (r.full && r.arrivedSize > window/2)
	return r.full
}

// handOver calls the user's function for what has arrived, one message after the other, as long as there are any.
func (r *remote) handOver() {
	r.peer.mu.Lock()
	defer r.peer.mu.Unlock()
	for ; len(r.arrived) > 0; r.peer.changed.Broadcast() {
		a := r.arrived[0]
		r.arrived = r.arrived[1:]
		if a.message != nil {
			r.peer.mu.Unlock()
			r.peer.handle(*a.message)
			r.peer.mu.Lock()
		}
		r.arrivedSize -= a.size()
		if a.from != nil {
			a.from.handed(a.below) // of an epoch that has ended, nobody reads it [P-66]
		}
	}
	r.handingOver = false
}

func newUUID() (made uuid) {
	rand.Read(made[:])
	return made
}
