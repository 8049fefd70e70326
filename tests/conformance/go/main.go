// A peer of netcomm's protocol, written from docs/protocol.md alone, with Go's standard library. It is made for tests,
// and to be read by people who implement the protocol themselves:
//
//	frames.go   bytes out, bytes in
//	session.go  one connection: its states, keep-alive, its end
//	streams.go  messages that go out until they are acknowledged, and messages that come in
//	remote.go   what is kept of one other peer: the streams both ways, what is handed over
//	peer.go     connections made and accepted, and which of them an ident gets
//
// Where the code does what the page asks for by number, a comment has the number. Both streams live in memory; the
// durable one dies with the process, too.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// An Event is what the program has seen, one line of JSON on its output each.
type Event struct {
	Event       string `json:"event"` // listening, connected, ended, received, delivered, expired or rejected
	Address     string `json:"address,omitempty"`
	Ident       string `json:"ident,omitempty"`
	Why         string `json:"why,omitempty"`
	Stream      string `json:"stream,omitempty"`
	UUID        []byte `json:"uuid,omitempty"`
	TTL         uint32 `json:"ttl,omitempty"`
	Redelivered bool   `json:"redelivered,omitempty"`
	Data        []byte `json:"data,omitempty"`
}

func main() {
	ident := flag.String("ident", "gopher", "the `name` of this peer")
	listen := flag.String("listen", "", "accept connections at this `address`, such as 127.0.0.1:4002")
	connect := flag.String("connect", "", "keep up a connection to this `address`")
	echo := flag.Bool("echo", false, "send each message back to its sender: the same uuid, the same time to live")
	to := flag.String("to", "", "the `ident` that gets the messages of -send")
	count := flag.Int("send", 0, "send so many messages, which are the numbers from 0 on")
	batch := flag.Int("batch", 1, "send so many of them in one go")
	persistent := flag.Bool("durable", false, "send them by the durable stream")
	ttl := flag.Duration("ttl", 0, "the time to live of each; 0: for ever")
	hold := flag.Int64("hold", 0, "do not return from handing over the message after so many, ever; 0: return from all")
	window := flag.Uint("window", 8<<20, "the most `bytes` that others may have sent and not have acknowledged")
	flag.Parse()

	var output sync.Mutex
	var handed atomic.Int64
	lines := json.NewEncoder(os.Stdout)
	tell := func(event Event) {
		output.Lock()
		defer output.Unlock()
		lines.Encode(event)
	}
	var peer *Peer
	peer = NewPeer(*ident, uint32(*window), func(m Received) {
		tell(Event{Event: "received", Ident: m.Ident, Stream: streamNames[m.Stream], UUID: m.UUID[:], TTL: m.TTL,
			Redelivered: m.Redelivered, Data: m.Data})
		if handed.Add(1) == *hold+1 && *hold > 0 {
			select {}
		}
		if *echo {
			left := time.Duration(m.TTL) * time.Second
			if m.TTL == forever {
				left = 0
			}
			peer.Send(m.Ident, m.Stream, m.UUID, deadline(left), m.Data)
		}
	}, tell)

	stream := uint8(volatile)
	if *persistent {
		stream = durable
	}
	go func() {
		for first := 0; first < *count; first += *batch {
			var data [][]byte
			for number := first; number < min(first+*batch, *count); number++ {
				data = append(data, []byte(strconv.Itoa(number)))
			}
			peer.Send(*to, stream, newUUID(), deadline(*ttl), data...)
		}
	}()

	if *connect != "" {
		go peer.Connect(*connect)
	}
	if *listen == "" {
		select {}
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	tell(Event{Event: "listening", Address: listener.Addr().String()})
	log.Fatal(peer.Listen(listener))
}

// deadline tells when something ends that lives so long; never, where that is 0.
func deadline(life time.Duration) time.Time {
	if life == 0 {
		return time.Time{}
	}
	return time.Now().Add(life)
}
