// A peer: the connections it makes and accepts, and which of them is admitted for an ident.

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

const (
	probeTime    = min(pingWait, handshakeTime/2) // for the first connection of an ident to show that it lives [P-49]
	reconnectMin = 100 * time.Millisecond         // [P-68]
	reconnectMax = 30 * time.Second
	tick         = 20 * time.Millisecond // between two looks at the clock
)

// A Peer sends messages to other peers, and hands over those that it gets.
type Peer struct {
	ident   string
	madeUp  bool     // the ident: no other process ever has it
	window  uint32   // the most that another may have sent and not have acknowledged, in bytes
	peerID  [16]byte // as long as the process: there is no storage
	bootID  [16]byte
	handle  func(Received) // for each message; not called twice at once for one stream of one ident
	tell    func(Event)    // is called with the lock held: it must not call the peer
	started time.Time

	mu         sync.Mutex // guards everything below, and all connections, remotes and streams
	changed    *sync.Cond // something may be due
	conns      map[*conn]bool
	remotes    map[string]*remote
	connectors uint32
	serving    int // connections, those included that have ended and are not closed yet
	closing    bool
}

// NewPeer makes a peer. Its ident is made up, where none is given. handle is called for each message: when it returns,
// the message was handed over. window: the most bytes that another peer may have sent to this one in one stream, and
// not have acknowledged.
func NewPeer(ident string, window uint32, handle func(Received), tell func(Event)) *Peer {
	p := &Peer{ident: ident, window: window, handle: handle, tell: tell, started: time.Now()}
	p.peerID, p.bootID = newUUID(), newUUID()
	if ident == "" {
		p.ident, p.madeUp = fmt.Sprintf("gopher-%x", newUUID()), true
	}
	p.changed = sync.NewCond(&p.mu)
	p.conns, p.remotes = map[*conn]bool{}, map[string]*remote{}
	go p.watchClock()
	return p
}

// Close ends all connections, and says GOODBYE where that is understood [P-82]. It returns when they are closed.
func (p *Peer) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closing = true
	for c := range p.conns {
		if c.state == extended && c.established {
			c.end(c.remote.farewell(), "this process ends")
		} else {
			c.end(nil, "this process ends")
		}
	}
	for p.serving > 0 {
		p.changed.Wait()
	}
}

func (p *Peer) isClosing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing
}

// flags tells those of this side's HELLO.
func (p *Peer) flags() uint8 {
	if p.madeUp {
		return flagMadeUp
	}
	return 0
}

func (p *Peer) now() time.Duration { return time.Since(p.started) }

// Send queues messages to an ident, known or not. It blocks while too much is queued.
func (p *Peer) Send(to string, stream uint8, first uuid, deadline time.Time, contents ...content) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.remote(to)
	for r.queued > queueBytes {
		p.changed.Wait()
	}
	r.send(stream, first, deadline, contents)
	p.changed.Broadcast()
}

// Listen accepts connections, for as long as the process lives.
func (p *Peer) Listen(listener net.Listener) error {
	for {
		sock, err := listener.Accept()
		if err != nil {
			return err
		}
		go p.serve(sock, 0)
	}
}

// Connect keeps up a connection to an address, until the peer closes.
func (p *Peer) Connect(address string) {
	p.mu.Lock()
	p.connectors++
	connector := p.connectors
	p.mu.Unlock()
	for delay := reconnectMin; !p.isClosing(); delay = min(2*delay, reconnectMax) {
		sock, err := net.DialTimeout("tcp", address, handshakeTime)
		if err == nil && p.serve(sock, connector) {
			delay = reconnectMin
		}
		time.Sleep(delay - rand.N(delay/2))
	}
}

func (p *Peer) remote(ident string) *remote {
	r := p.remotes[ident]
	if r == nil {
		r = newRemote(p, ident)
		p.remotes[ident] = r
	}
	return r
}

// -- Who replaces whom --------------------------------------------------------------------------------------------

// identify decides about a connection whose ident is known now.
func (p *Peer) identify(c *conn, ident string) {
	if ident == p.ident {
		c.refuse(codeDuplicateIdent, "that is my own ident") // [P-51]
		return
	}
	r := p.remote(ident)
	c.remote = r
	first := r.conn
	switch {
	case first == nil:
		c.admit()
	case sameConnector(first, c) || p.winsOver(c, first):
		if r.waiting != nil {
			r.waiting.refuse(codeDuplicateIdent, "another connection has replaced the first")
		}
		r.waiting = c
		first.end(nil, "replaced") // which admits the one that waits
	case r.waiting != nil || r.isFull():
		c.refuse(codeDuplicateIdent, "the ident is connected") // [P-52]
	default:
		r.waiting = c
		first.ask() // [P-49]
	}
}

// sameConnector reports whether one connector of one process has made both, and so has given up the first [P-48].
func sameConnector(first, second *conn) bool {
	a, b := first.hello, second.hello
	return a != nil && b != nil && a.BootID == b.BootID && a.Connector == b.Connector && a.Connector != 0
}

// winsOver reports whether two peers have dialled each other, and the second connection is the one to be kept [P-50].
func (p *Peer) winsOver(second, first *conn) bool {
	a, b := first.hello, second.hello
	if a == nil || b == nil || a.BootID != b.BootID || (first.connector == 0) == (second.connector == 0) {
		return false
	}
	iAmHigher := bytes.Compare(p.bootID[:], b.BootID[:]) > 0
	return iAmHigher == (second.connector != 0)
}

// hasEnded reports whether a connection is one of the process that was connected last, and has said GOODBYE.
func (r *remote) hasEnded(c *conn) bool {
	return r.ended != nil && c.hello != nil && c.hello.BootID == *r.ended
}

// forget lets go of a connection that has ended. The one that waits for its place gets it.
func (p *Peer) forget(c *conn, why string) {
	delete(p.conns, c)
	r := c.remote
	if r == nil {
		p.tell(Event{Event: "ended", Why: why})
		return
	}
	p.tell(Event{Event: "ended", Ident: r.ident, Why: why})
	if r.waiting == c {
		r.waiting = nil
	}
	if r.conn == c {
		r.conn = nil
		if r.waiting != nil {
			next := r.waiting
			r.waiting = nil
			next.admit()
		}
	}
}

// judge looks whether the first connection has shown that it lives, or the time for that is over.
func (r *remote) judge() {
	if r.waiting == nil {
		return
	}
	first := r.conn
	switch late := r.peer.now()-first.askedAt > probeTime; {
	case first.heardSince(first.askedAt), late && first.takesOutput():
		r.waiting.refuse(codeDuplicateIdent, "the ident is connected")
	case late:
		first.end(nil, "no sign of life, and another connection waits")
	}
}

// watchClock looks every now and then what is due by time alone.
func (p *Peer) watchClock() {
	for range time.Tick(tick) {
		p.mu.Lock()
		for _, r := range p.remotes {
			r.judge()
		}
		for c := range p.conns {
			c.check()
		}
		p.mu.Unlock()
	}
}
