// One connection: its states, what may come in which of them, keep-alive, and the end.

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

const (
	handshakeTime = 10 * time.Second       // until a connection is established [P-24]
	idleTime      = 15 * time.Second       // until a silent side is asked [P-47]
	pingWait      = 10 * time.Second       // for its sign of life
	legacyQuiet   = 100 * time.Millisecond // before anything is said behind an IDENT to a legacy peer [P-53]
	lingerTime    = time.Second            // for the other side to read the last words [P-57]

	chunkBytes = 64 << 10 // output is made in pieces of about this size
)

// A state says how far the other side has come.
type state int

const (
	awaitVersion state = iota
	awaitIdent
	identified
	extended
	legacy
	ended
)

// allowed reports whether the other side may send this frame now [P-20].
func (c *conn) allowed(frame any) bool {
	switch frame.(type) {
	case version:
		return c.state == awaitVersion
	case hello:
		return c.state == awaitIdent && c.hello == nil
	case ident:
		return c.state == awaitIdent
	case begin, messages, ack, skip, goodbye:
		return c.state == extended
	case message:
		return c.state == legacy
	case ping, pong:
		return c.state == extended || c.state == legacy
	case incompatible:
		return c.state != extended
	case refuse:
		return c.state != legacy
	}
	return false
}

// A conn is one connection. Two goroutines run it: one reads, one writes. All that is not atomic is guarded by the
// peer's mutex.
type conn struct {
	peer      *Peer
	sock      net.Conn
	connector uint32 // which of this side's connectors has made it; 0 where the other side has
	opened    time.Time

	state       state
	hello       *hello  // of the other side; nil as long as it is, or seems, a legacy peer
	remote      *remote // once its IDENT has come
	established bool
	heard       atomic.Int64 // when the last byte came, on the peer's clock

	// What the writer has to say; messages are with the streams.
	greeting    []byte
	pings       int
	pongs       int
	lastWords   []byte
	legacyPings []int     // to a legacy peer, for each PING without a PONG: so many messages are confirmed by it
	quietUntil  time.Time // say nothing more to a legacy peer; zero: no more

	// Keep-alive.
	written  atomic.Int64  // so many bytes has this side's system taken
	askedAt  time.Duration // when the last PING was due, on the peer's clock
	asked    bool          // it has no answer
	pingEnds int64         // so many bytes were written with that PING; 0: it was not written
	takenAt  time.Duration // when it was last looked how much the other side's system has taken
	taken    int64
}

// serve runs a connection until it is over, and reports whether it was established.
func (p *Peer) serve(sock net.Conn, connector uint32) bool {
	c := &conn{peer: p, sock: sock, connector: connector, opened: time.Now()}
	c.greeting = slices.Concat(
		packet(typeVersion, version{1}),
		packet(typeHello, hello{1, p.peerID, p.bootID, connector, maxFrame, p.window, p.flags()}),
		packet(typeIdent, nil, []byte(p.ident)),
	)
	p.mu.Lock()
	p.conns[c] = true
	p.serving++
	if p.closing {
		c.end(nil, "this process ends")
	}
	p.mu.Unlock()
	go c.write()
	c.read()
	sock.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serving--
	p.changed.Broadcast()
	return c.established
}

// Read is the reader's way to the socket. Any byte is a sign of life, also of a packet that is not complete.
func (c *conn) Read(into []byte) (int, error) {
	n, err := c.sock.Read(into)
	if n > 0 {
		c.heard.Store(int64(c.peer.now()))
	}
	return n, err
}

func (c *conn) read() {
	in := bufio.NewReaderSize(c, chunkBytes)
	limit := uint32(maxFrameBeforeIdent)
	for {
		frame, err := readFrame(in, limit)
		c.peer.mu.Lock()
		if c.state != ended {
			c.handle(frame, err)
		}
		for c.state == identified || (c.state != ended && c.remote != nil && c.remote.isFull()) {
			c.peer.changed.Wait() // nothing is read on [P-22]
		}
		over := c.state == ended
		if c.remote != nil {
			limit = maxFrame // [P-04]
		}
		c.peer.mu.Unlock()
		if over {
			break
		}
	}
	for err := error(nil); err == nil; { // read on, without acting on it, until the deadline [P-57]
		_, err = c.sock.Read(make([]byte, chunkBytes))
	}
}

// handle acts on what was read: a frame, nothing (of a type that is not known), or an error.
func (c *conn) handle(frame any, err error) {
	if err == nil && frame != nil {
		if c.allowed(frame) {
			err = c.take(frame)
		} else {
			err = breachOf("P-20", "%T does not belong here", frame)
		}
	}
	var wrong breach
	if errors.As(err, &wrong) {
		c.refuse(codeProtocolError, wrong.Error())
	} else if err != nil {
		c.end(nil, err.Error())
	}
	c.peer.changed.Broadcast()
}

func (c *conn) take(frame any) error {
	c.quietUntil = time.Time{}
	switch frame := frame.(type) {
	case version:
		if frame.Number != 1 {
			c.end(packet(typeIncompatible, nil), fmt.Sprintf("the other side has version %d", frame.Number))
			return nil
		}
		c.state = awaitIdent
	case hello:
		c.hello = &frame
	case ident:
		c.state = identified
		c.peer.identify(c, string(frame))
	case incompatible:
		c.end(nil, "the other side has no version in common")
	case refuse:
		c.end(nil, fmt.Sprintf("refused with code %d: %s", frame.Code, frame.Text))
	case ping:
		c.pongs++
	case pong:
		if c.state == legacy && len(c.legacyPings) > 0 {
			c.remote.confirm(c.legacyPings[0])
			c.legacyPings = c.legacyPings[1:]
		}
	case message:
		c.remote.takeLegacy(frame)
	case begin:
		c.establish()
		return c.remote.begin(frame)
	case messages:
		return c.remote.take(frame)
	case skip:
		return c.remote.skip(frame)
	case ack:
		return c.remote.acknowledge(frame)
	case goodbye:
		c.remote.goodbye(c.hello)
		c.end(nil, "the other side's process ends") // [P-83]
	}
	return nil
}

// admit lets the other side in: from now on, it is listened to, and has messages.
func (c *conn) admit() {
	if c.remote.hasEnded(c) {
		c.end(nil, "its process has said that it ends") // [P-84]
		return
	}
	if c.hello == nil { // [P-21]
		c.state = legacy
		c.quietUntil = time.Now().Add(legacyQuiet)
	} else {
		c.state = extended
	}
	c.remote.connect(c)
	c.peer.changed.Broadcast()
}

func (c *conn) establish() {
	if !c.established {
		c.established = true
		c.peer.tell(Event{Event: "connected", Ident: c.remote.ident})
	}
}

// refuse says why, where the other side understands it [P-15], and ends the connection.
func (c *conn) refuse(code uint16, text string) {
	var words []byte
	if c.hello != nil {
		words = refusePacket(code, text)
	}
	c.end(words, text)
}

// end lets the connection end behind the last words: the other side has a second to read them [P-57].
func (c *conn) end(lastWords []byte, why string) {
	if c.state == ended {
		return
	}
	c.state = ended
	c.lastWords = lastWords
	c.sock.SetDeadline(time.Now().Add(lingerTime))
	c.peer.forget(c, why)
	c.peer.changed.Broadcast()
}

// -- The writer ---------------------------------------------------------------------------------------------------

func (c *conn) write() {
	for over := false; !over; {
		c.peer.mu.Lock()
		chunk := c.compose()
		for len(chunk) == 0 && c.state != ended {
			c.peer.changed.Wait()
			chunk = c.compose()
		}
		over = c.state == ended
		c.peer.mu.Unlock()
		n, err := c.sock.Write(chunk)
		c.written.Add(int64(n))
		if err != nil {
			c.sock.SetReadDeadline(time.Now()) // the reader ends the connection
			return
		}
	}
	if half, ok := c.sock.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// compose makes what there is to say now, in about a chunk. Nothing waits anywhere but as a count, a flag or a message,
// so that a side which does not read what it asks for fills no memory.
func (c *conn) compose() []byte {
	out := c.greeting
	c.greeting = nil
	if c.state == ended {
		return append(out, c.lastWords...)
	}
	if (c.state != extended && c.state != legacy) || !c.quietUntil.IsZero() {
		return out
	}
	if c.state == extended {
		out = append(out, c.remote.begins()...) // before any other frame [P-23]
	}
	for ; c.pings > 0; c.pings-- {
		out = append(out, packet(typePing, nil)...)
		c.pingEnds = c.written.Load() + int64(len(out))
		if c.state == legacy {
			c.legacyPings = append(c.legacyPings, 0)
		}
	}
	for ; c.pongs > 0 && len(out) < chunkBytes; c.pongs-- {
		out = append(out, packet(typePong, nil)...)
	}
	if c.state == legacy {
		return c.remote.composeLegacy(out)
	}
	return c.remote.compose(out)
}

// -- Keep-alive ---------------------------------------------------------------------------------------------------

// check does what is due by time alone. The peer calls it every now and then.
func (c *conn) check() {
	now := c.peer.now()
	if !c.quietUntil.IsZero() && time.Now().After(c.quietUntil) {
		c.quietUntil = time.Time{}
		c.peer.changed.Broadcast()
	}
	if c.state == legacy && c.quietUntil.IsZero() {
		c.establish()
	}
	switch {
	case c.state == ended:
	case !c.established:
		if time.Since(c.opened) > handshakeTime {
			c.end(nil, "not established in time")
		}
	case c.asked && c.heardSince(c.askedAt):
		c.asked = false
	case c.asked && now-c.takenAt > pingWait && !c.takesOutput():
		c.end(nil, "no sign of life")
	case !c.asked && !c.heardSince(now-idleTime):
		c.ask()
	}
}

// ask sends a PING, and notes that it wants a sign of life.
func (c *conn) ask() {
	c.pings++
	c.pingEnds = 0
	c.asked, c.askedAt = true, c.peer.now()
	c.takesOutput()
	c.peer.changed.Broadcast()
}

func (c *conn) heardSince(when time.Duration) bool { return time.Duration(c.heard.Load()) >= when }

// takesOutput reports whether the PING waits behind output, of which the other side's system has taken some since this
// was asked last [P-47].
func (c *conn) takesOutput() bool {
	taken := c.written.Load() - unsent(c.sock)
	before := c.taken
	c.taken, c.takenAt = taken, c.peer.now()
	return taken > before && (c.pingEnds == 0 || taken < c.pingEnds)
}
