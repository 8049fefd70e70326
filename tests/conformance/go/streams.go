// Streams of messages: those that go out, until they are acknowledged, and those that come in.

package main

import (
	"math/rand/v2"
	"slices"
	"time"
)

// -- Out ----------------------------------------------------------------------------------------------------------

// An outgoing message, which waits to be sent, or to be acknowledged.
type outgoing struct {
	stream   *outStream
	seq      uint64
	uuid     uuid
	deadline time.Time // zero: it lives for ever
	content
}

// ttl tells what is left to live, in whole seconds, rounded up; 0 where nothing is.
func (m *outgoing) ttl(now time.Time) uint32 {
	if m.deadline.IsZero() {
		return forever
	}
	left := m.deadline.Sub(now) + time.Second - 1
	return uint32(min(max(left/time.Second, 0), forever-1))
}

// An outStream is one stream to one peer. Of its queue, the first `sent` are on this connection, or have arrived
// before; they wait to be acknowledged. The others wait to be sent.
//
// A stream here lives as long as the process, and so does its epoch [P-25]: also that of a durable stream, whose
// storage is memory.
type outStream struct {
	number    uint8
	epoch     uint64
	queue     []*outgoing
	sent      int
	nextSeq   uint64 // of the next message that the user sends
	sentBelow uint64 // no message from this seq on was ever written
	inFlight  int    // bytes sent and not acknowledged, to a legacy peer as well [P-45]

	// On this connection:
	begun       bool
	answered    bool   // the BEGIN has its ACK: messages may go [P-28]
	expected    uint64 // the seq that the receiver expects
	resentBelow uint64 // messages below it may have been on an earlier connection
}

func newOutStream(number uint8) *outStream { return &outStream{number: number, epoch: rand.Uint64()} }

// restart says that a new connection is there.
func (s *outStream) restart() {
	s.begun, s.answered, s.sent, s.inFlight, s.resentBelow = false, false, 0, 0, s.sentBelow
}

// begin makes the BEGIN that has to be sent now.
func (s *outStream) begin() begin {
	s.begun = true
	first := s.nextSeq
	if len(s.queue) > 0 {
		first = s.queue[0].seq
	}
	s.sentBelow = max(s.sentBelow, first) // [P-33]; what is below first has ended
	return begin{s.number, s.epoch, first, s.sentBelow}
}

// renew gives the stream a new epoch: the receiver has got messages of the old one that were never sent [P-40].
func (s *outStream) renew() {
	s.epoch, s.begun, s.sentBelow = rand.Uint64(), false, s.nextSeq
	s.resentBelow = s.sentBelow
}

// acknowledge takes an ACK. It returns the messages that were handed over.
func (s *outStream) acknowledge(frame ack) ([]*outgoing, error) {
	switch {
	case !s.begun:
		return nil, breachOf("P-32", "ACK of a stream that was not begun")
	case frame.Epoch != s.epoch:
		return nil, nil // on its way when the epoch was begun [P-39]
	case frame.ReceivedSeq > s.sentBelow && isDurable(s.number) && !s.answered:
		s.renew()
		return nil, nil
	case frame.ReceivedSeq > s.sentBelow:
		return nil, breachOf("P-38", "ACK below %d, sent below %d", frame.ReceivedSeq, s.sentBelow)
	}
	handedOver := s.queue[:s.countBelow(frame.NextSeq)]
	s.inFlight -= bytesOf(handedOver[:min(s.sent, len(handedOver))])
	s.queue = s.queue[len(handedOver):]
	s.sent = max(s.sent-len(handedOver), 0)
	if !s.answered {
		s.answered, s.expected, s.sent = true, frame.ReceivedSeq, s.countBelow(frame.ReceivedSeq)
		s.inFlight = bytesOf(s.queue[:s.sent])
	}
	return handedOver, nil
}

func isDurable(number uint8) bool { return number%2 == 1 }

func bytesOf(ms []*outgoing) (total int) {
	for _, m := range ms {
		total += m.size()
	}
	return total
}

func (s *outStream) countBelow(seq uint64) int {
	n, _ := slices.BinarySearchFunc(s.queue, seq, func(m *outgoing, seq uint64) int {
		if m.seq < seq {
			return -1
		}
		return 1
	})
	return n
}

// run tells which messages of the queue can go in one frame, from the next one on: those that were never sent, that
// differ by seq and uuid as a BATCH wants it, that all have an envelope or none, and that fit into a payload and into
// the room that the window leaves.
func (s *outStream) run(now time.Time, payload, room int) []*outgoing {
	first := s.queue[s.sent]
	behind := s.sent + 1
	size := 34 + 4 + first.size() - dataPacketBytes
	room -= first.size()
	for ; first.seq >= s.resentBelow && behind < len(s.queue) && behind-s.sent < 1<<16-1; behind++ { // [P-61]
		next, n := s.queue[behind], uint64(behind-s.sent)
		size += 4 + next.size() - dataPacketBytes
		room -= next.size()
		if size > payload || room < 0 {
			break
		}
		if next.seq != first.seq+n || next.uuid != first.uuid.plus(n) || next.ttl(now) != first.ttl(now) {
			break
		}
		if (next.Envelope == nil) != (first.Envelope == nil) {
			break
		}
	}
	return s.queue[s.sent:behind]
}

// frames makes the packets of a run of messages; SKIP goes before it where the receiver expects another [P-41].
func (s *outStream) frames(now time.Time, run []*outgoing) []byte {
	var out []byte
	first := run[0]
	if first.seq != s.expected {
		out = packet(typeSkip, skip{s.number, first.seq})
	}
	contents := make([]content, len(run))
	for i, m := range run {
		contents[i] = m.content
	}
	head := dataHead{first.seq, messageHead{first.uuid, first.ttl(now), uint32(s.number)}}
	s.sent += len(run)
	s.inFlight += bytesOf(run)
	s.expected = run[len(run)-1].seq + 1
	s.sentBelow = max(s.sentBelow, s.expected) // which a SKIP counts for, too [P-63]
	return append(out, messagesPacket(head, contents)...)
}

// drop removes the next message to be sent.
func (s *outStream) drop() { s.queue = slices.Delete(s.queue, s.sent, s.sent+1) }

// discard removes all messages, which the connection that they were sent on has left. It returns them.
func (s *outStream) discard() []*outgoing {
	all := s.queue
	s.queue, s.sent, s.inFlight = nil, 0, 0
	return all
}

// -- In -----------------------------------------------------------------------------------------------------------

// An inStream is one epoch of one stream from one peer.
type inStream struct {
	epoch       uint64
	handedSeq   uint64 // every message below it was handed over or skipped
	receivedSeq uint64 // every message below it has arrived or was skipped
	markedBelow uint64 // an earlier process may have handed over messages below it [P-34]
	begun       bool   // on this connection
	ackDue      bool
}

// begin takes a BEGIN: it returns what goes on, or begins. s is what is known of the stream, or nil.
func (s *inStream) begin(frame begin) (*inStream, error) {
	first := frame.FirstSeq
	switch {
	case s == nil || s.epoch != frame.Epoch: // not known [P-27]
		s = &inStream{epoch: frame.Epoch, handedSeq: first, receivedSeq: first, markedBelow: frame.SentBelow}
	case s.begun:
		return s, breachOf("P-26", "a second BEGIN of epoch %x", frame.Epoch)
	case s.receivedSeq < first:
		s.handedSeq, s.receivedSeq = first, first
	}
	s.begun, s.ackDue = true, true
	return s, nil
}

// accept takes the next message, and reports whether it is new.
func (s *inStream) accept(seq uint64) (bool, error) {
	switch {
	case seq > s.receivedSeq:
		return false, breachOf("P-31", "message %d where %d is expected", seq, s.receivedSeq)
	case seq < s.receivedSeq:
		s.ackDue = true // the sender does not know [P-30]
		return false, nil
	}
	s.receivedSeq++
	return true, nil
}

// handed says that everything below seq was handed over.
func (s *inStream) handed(seq uint64) {
	s.handedSeq, s.ackDue = max(s.handedSeq, seq), true
}
