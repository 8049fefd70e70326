// A peer of netcomm's protocol, written from docs/protocol.md alone, with Go's standard library. It is made for tests,
// and to be read by people who implement the protocol themselves:
//
//	frames.go   bytes out, bytes in
//	envelope.go the same, of envelopes
//	session.go  one connection: its states, keep-alive, its end
//	streams.go  messages that go out until they are acknowledged, and messages that come in
//	remote.go   what is kept of one other peer: the streams both ways, what is handed over
//	peer.go     connections made and accepted, and which of them an ident gets
//
// Where the code does what the page asks for by number, a comment has the number. All streams live in memory; the
// durable ones die with the process, too. It is no bus: what comes in a bus's streams is handed over like any message.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// An Event is what the program has seen, one line of JSON on its output each.
type Event struct {
	Event       string   `json:"event"` // listening, connected, ended, received; how a message that was sent has ended
	Address     string   `json:"address,omitempty"`
	Ident       string   `json:"ident,omitempty"`
	Why         string   `json:"why,omitempty"`
	Stream      string   `json:"stream,omitempty"`
	UUID        []byte   `json:"uuid,omitempty"`
	TTL         uint32   `json:"ttl,omitempty"`
	Redelivered bool     `json:"redelivered,omitempty"`
	Subject     string   `json:"subject,omitempty"`
	ID          uint64   `json:"id,omitempty"`
	Headers     []header `json:"headers,omitempty"`
	Data        []byte   `json:"data,omitempty"`
}

func main() {
	ident := flag.String("ident", "gopher", "the `name` of this peer; empty: one is made up")
	listen := flag.String("listen", "", "accept connections at this `address`, such as 127.0.0.1:4002")
	connect := flag.String("connect", "", "keep up a connection to this `address`")
	echo := flag.Bool("echo", false, "send each message back: the same stream, uuid, time to live and envelope")
	to := flag.String("to", "", "the `ident` that gets the messages of -send")
	count := flag.Int("send", 0, "send so many messages, which are the numbers from 0 on")
	batch := flag.Int("batch", 1, "send so many of them in one go")
	name := flag.String("stream", streamNames[volatile], "send them by this `stream`")
	subject := flag.String("subject", "", "send them with this subject, and the numbers from 1 on as their ids")
	headers := flag.Bool("headers", false, "with -subject: each has its number as a header, too")
	ttl := flag.Duration("ttl", 0, "the time to live of each; 0: for ever")
	hold := flag.Int64("hold", 0, "do not return from handing over the message after so many, ever; 0: return from all")
	window := flag.Uint("window", 8<<20, "the most `bytes` that others may have sent and not have acknowledged, by stream")
	flag.Parse()
	stream := slices.Index(streamNames[:], *name)
	if stream < 0 || *name == "" {
		log.Fatalf("there is no stream %q", *name)
	}

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
		event := Event{Event: "received", Ident: m.Ident, Stream: streamNames[m.Stream], UUID: m.UUID[:], TTL: m.TTL,
			Redelivered: m.Redelivered, Data: m.Data}
		if m.Envelope != nil {
			event.Subject, event.ID, event.Headers = m.Envelope.Subject, m.Envelope.ID, m.Envelope.Headers
		}
		tell(event)
		if handed.Add(1) == *hold+1 && *hold > 0 {
			select {}
		}
		if *echo {
			left := time.Duration(m.TTL) * time.Second
			if m.TTL == forever {
				left = 0
			}
			peer.Send(m.Ident, m.Stream, m.UUID, deadline(left), m.content)
		}
	}, tell)

	go func() {
		for first := 0; first < *count; first += *batch {
			var contents []content
			for number := first; number < min(first+*batch, *count); number++ {
				text := strconv.Itoa(number)
				contents = append(contents, content{envelopeOf(*subject, *headers, number), []byte(text)})
			}
			peer.Send(*to, uint8(stream), newUUID(), deadline(*ttl), contents...)
		}
	}()

	if *connect != "" {
		go peer.Connect(*connect)
	}
	if *listen != "" {
		listener, err := net.Listen("tcp", *listen)
		if err != nil {
			log.Fatal(err)
		}
		tell(Event{Event: "listening", Address: listener.Addr().String()})
		go peer.Listen(listener)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	<-stop
	peer.Close()
}

// envelopeOf makes that of a message that is sent; nil without a subject.
func envelopeOf(subject string, headers bool, number int) *envelope {
	if subject == "" {
		return nil
	}
	its := &envelope{Fields: hasSubject | hasID, Subject: subject, ID: uint64(number) + 1}
	if headers {
		its.Fields |= hasHeaders
		its.Headers = []header{{"number", strconv.Itoa(number)}}
	}
	return its
}

// deadline tells when something ends that lives so long; never, where that is 0.
func deadline(life time.Duration) time.Time {
	if life == 0 {
		return time.Time{}
	}
	return time.Now().Add(life)
}
