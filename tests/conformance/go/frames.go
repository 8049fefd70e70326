// Frames: bytes out and bytes in. Nothing in this file knows what a frame is for.

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The types of frames.
const (
	typeVersion      = 0x00
	typeIncompatible = 0x01
	typeIdent        = 0x02
	typeMessage      = 0x03
	typePing         = 0x04
	typePong         = 0x05
	typeHello        = 0x80
	typeBegin        = 0x81
	typeData         = 0x82
	typeAck          = 0x83
	typeSkip         = 0x84
	typeRefuse       = 0x85
	typeBatch        = 0x86
	typeGoodbye      = 0x87
)

// The streams, by their numbers. There is no stream 3.
const (
	volatile    = 0
	durable     = 1
	bulk        = 2
	busVolatile = 4
	busDurable  = 5
	streamCount = 6
)

var streamNames = [streamCount]string{volatile: "volatile", durable: "durable", bulk: "bulk",
	busVolatile: "bus volatile", busDurable: "bus durable"}

// The flags of messages [P-07].
const (
	flagDurable   = 1  // in MESSAGE: the sender keeps it in a storage
	flagsStream   = 7  // in DATA and BATCH: the number of the stream
	flagEnvelope  = 8  // one envelope: that of the message, or of all messages of a BATCH
	flagEnvelopes = 16 // an envelope for each message of a BATCH
)

// The flags of HELLO.
const flagMadeUp = 1 // the ident was made up [P-81]

// The codes of REFUSE.
const (
	codeDuplicateIdent = 1
	codeIncompatible   = 2
	codeProtocolError  = 3
)

const (
	maxFrameBeforeIdent = 4096     // the largest size of a packet before the other side's IDENT
	maxFrame            = 64 << 20 // and behind it
	maxRefuseText       = 1024
	maxBulkBytes        = 64 << 10 // of data, in a message of the stream BULK [P-87]
	dataPacketBytes     = 37       // a DATA packet on the wire is so much larger than its envelope and its data
	forever             = 0xffffffff
	lastSeq             = 1<<64 - 1 // no message has it: the next one could not be named
)

// A breach is an error of the other side: something that came does not keep to the protocol.
type breach string

func (b breach) Error() string { return string(b) }

func breachOf(rule, format string, values ...any) error {
	return breach(rule + ": " + fmt.Sprintf(format, values...))
}

// The fixed parts of frames. Their fields are those of the wire, in its order.
type (
	version struct{ Number uint32 }
	hello   struct {
		Version          uint16
		PeerID, BootID   [16]byte
		Connector        uint32
		MaxFrame, Window uint32
		Flags            uint8
	}
	begin struct {
		Stream                     uint8
		Epoch, FirstSeq, SentBelow uint64
	}
	ack struct {
		Stream                      uint8
		Epoch, NextSeq, ReceivedSeq uint64
	}
	skip struct {
		Stream  uint8
		NextSeq uint64
	}
	messageHead struct {
		UUID       uuid
		TTL, Flags uint32
	}
	dataHead struct {
		Seq uint64
		messageHead
	}
	refuseHead struct{ Code uint16 }
	batchHead  struct {
		dataHead
		Count uint16
	}
)

// Frames that are more than a fixed part, or less.
type (
	incompatible struct{}
	ping         struct{}
	pong         struct{}
	goodbye      struct{}
	ident        string
	message      struct { // MESSAGE, of a legacy peer
		messageHead
		Data []byte
	}
	messages struct { // DATA and BATCH
		dataHead
		Contents []content
	}
	content struct { // of one message
		Envelope *envelope // nil: it has none
		Data     []byte
	}
	refuse struct {
		Code uint16
		Text string
	}
)

// stream tells the number of the stream that DATA or BATCH belongs to. Bits that are not known mean nothing [P-07].
func (h dataHead) stream() uint8 { return uint8(h.Flags & flagsStream) }

// size tells what a message takes on the wire, as the DATA packet that it might be [P-45].
func (c content) size() int { return dataPacketBytes + len(c.Envelope.encode()) + len(c.Data) }

type uuid [16]byte

// plus tells the uuid of a message n places behind this one in a batch [P-59].
func (u uuid) plus(n uint64) uuid {
	binary.BigEndian.PutUint64(u[8:], binary.BigEndian.Uint64(u[8:])+n)
	return u
}

// -- Bytes out ----------------------------------------------------------------------------------------------------

// packet makes a packet of a fixed part, which may be nil, and what stands behind it.
func packet(kind byte, head any, rest ...[]byte) []byte {
	var out bytes.Buffer
	out.Write([]byte{0, 0, 0, 0, kind})
	if head != nil {
		binary.Write(&out, binary.BigEndian, head) // fails for no fixed part
	}
	for _, part := range rest {
		out.Write(part)
	}
	made := out.Bytes()
	binary.BigEndian.PutUint32(made, uint32(len(made)-4)) // the size does not count itself [P-01]
	return made
}

// messagesPacket makes DATA of one message and BATCH of several. All have an envelope, or none has. In a BATCH, one
// envelope stands for all where the others come of it by counting [P-75]; else, each has its own [P-76].
func messagesPacket(head dataHead, contents []content) []byte {
	var front, sizes, data []byte // front: the envelope of the message, or of all
	if first := contents[0].Envelope; first != nil {
		head.Flags |= flagEnvelope
		front = first.encode()
		for i, one := range contents {
			if !bytes.Equal(one.Envelope.encode(), first.plus(uint64(i)).encode()) {
				head.Flags ^= flagEnvelope | flagEnvelopes
				front = nil
				break
			}
		}
	}
	for _, one := range contents {
		start := len(data)
		if front == nil {
			data = append(data, one.Envelope.encode()...)
		}
		data = append(data, one.Data...)
		sizes = binary.BigEndian.AppendUint32(sizes, uint32(len(data)-start))
	}
	if len(contents) == 1 {
		return packet(typeData, head, front, data)
	}
	return packet(typeBatch, batchHead{head, uint16(len(contents))}, sizes, front, data)
}

func refusePacket(code uint16, text string) []byte {
	for len(text) > maxRefuseText || !utf8.ValidString(text) {
		text = text[:min(len(text)-1, maxRefuseText)] // not in the midst of a character
	}
	return packet(typeRefuse, refuseHead{code}, []byte(text))
}

// -- Bytes in -----------------------------------------------------------------------------------------------------

// readFrame reads one packet. Of a type that is not known, it returns nil [P-05].
func readFrame(from io.Reader, limit uint32) (any, error) {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	announced := binary.BigEndian.Uint32(size[:])
	if announced == 0 {
		return nil, breachOf("P-02", "a packet of size 0")
	}
	if announced > limit {
		return nil, breachOf("P-03", "a packet of %d bytes is over the limit of %d", announced, limit)
	}
	var body bytes.Buffer // grows with what arrives, not to what is announced [P-03]
	if _, err := io.CopyN(&body, from, int64(announced)); err != nil {
		return nil, err
	}
	return parse(body.Bytes()[0], body.Bytes()[1:])
}

func parse(kind byte, payload []byte) (any, error) {
	switch kind {
	case typeVersion:
		return exactly[version](payload)
	case typeIncompatible:
		return incompatible{}, nil
	case typeIdent:
		if len(payload) < 1 || len(payload) > 255 || !utf8.Valid(payload) {
			return nil, breachOf("P-08", "an ident that is empty, too long, or not UTF-8")
		}
		return ident(payload), nil
	case typeMessage:
		head, data, err := atLeast[messageHead](payload)
		return message{head, data}, err
	case typePing:
		return ping{}, nil
	case typePong:
		return pong{}, nil
	case typeHello:
		return parseHello(payload)
	case typeBegin:
		return parseBegin(payload)
	case typeData:
		return parseData(payload)
	case typeAck:
		return parseAck(payload)
	case typeSkip:
		frame, err := exactly[skip](payload)
		if err != nil {
			return nil, err
		}
		return frame, checkStream(frame.Stream)
	case typeRefuse:
		head, text, err := atLeast[refuseHead](payload)
		return refuse{head.Code, printable(text)}, err
	case typeBatch:
		return parseBatch(payload)
	case typeGoodbye:
		return goodbye{}, nil
	}
	return nil, nil
}

func parseHello(payload []byte) (any, error) {
	frame, _, err := atLeast[hello](payload) // later versions append fields [P-11]
	switch {
	case err != nil:
		return nil, err
	case frame.Version == 0:
		return nil, breachOf("P-12", "HELLO of version 0")
	case frame.MaxFrame < 33 || frame.Window == 0:
		return nil, breachOf("P-13", "HELLO with a max frame or a window that lets no message pass")
	}
	return frame, nil
}

func parseBegin(payload []byte) (any, error) {
	frame, err := exactly[begin](payload)
	if err != nil {
		return nil, err
	}
	if frame.SentBelow < frame.FirstSeq {
		return nil, breachOf("P-33", "BEGIN with sent below %d, first seq %d", frame.SentBelow, frame.FirstSeq)
	}
	return frame, checkStream(frame.Stream)
}

func parseAck(payload []byte) (any, error) {
	frame, err := exactly[ack](payload)
	if err != nil {
		return nil, err
	}
	if frame.ReceivedSeq < frame.NextSeq {
		return nil, breachOf("P-39", "ACK with received seq %d, next seq %d", frame.ReceivedSeq, frame.NextSeq)
	}
	return frame, checkStream(frame.Stream)
}

func parseData(payload []byte) (any, error) {
	head, data, err := atLeast[dataHead](payload)
	var its *envelope
	switch {
	case err != nil:
		return nil, err
	case head.Flags&flagEnvelopes != 0:
		return nil, breachOf("P-70", "DATA with the flag of a BATCH whose messages have envelopes")
	case head.Flags&flagEnvelope != 0: // [P-69]
		its, data, err = parseEnvelope(data)
	}
	if err != nil {
		return nil, err
	}
	return checkMessages(messages{head, []content{{its, data}}})
}

func parseBatch(payload []byte) (any, error) {
	head, rest, err := atLeast[batchHead](payload)
	if err != nil {
		return nil, err
	}
	count := int(head.Count)
	if count == 0 || len(rest) < 4*count {
		return nil, breachOf("P-60", "BATCH of %d messages with %d bytes for their sizes", count, len(rest))
	}
	sizes, rest := rest[:4*count], rest[4*count:]
	var ofAll *envelope
	each := head.Flags&flagEnvelopes != 0
	if head.Flags&flagEnvelope != 0 { // [P-75]
		if each {
			return nil, breachOf("P-70", "BATCH with an envelope for all and one for each")
		}
		if ofAll, rest, err = parseEnvelope(rest); err != nil {
			return nil, err
		}
	}
	frame := messages{head.dataHead, make([]content, count)}
	for i := range frame.Contents {
		size := uint64(binary.BigEndian.Uint32(sizes[4*i:]))
		if size > uint64(len(rest)) {
			return nil, breachOf("P-60", "BATCH with less data than its sizes say")
		}
		one := content{ofAll.plus(uint64(i)), rest[:size:size]}
		rest = rest[size:]
		if each { // [P-76]
			if one.Envelope, one.Data, err = parseEnvelope(one.Data); err != nil {
				return nil, err
			}
		}
		frame.Contents[i] = one
	}
	if len(rest) > 0 {
		return nil, breachOf("P-60", "BATCH with more data than its sizes say")
	}
	return checkMessages(frame)
}

// atLeast reads a fixed part, and returns what stands behind it.
func atLeast[Head any](payload []byte) (head Head, rest []byte, err error) {
	size := binary.Size(head)
	if len(payload) < size {
		return head, nil, breachOf("P-06", "%T of %d bytes", head, len(payload))
	}
	binary.Read(bytes.NewReader(payload), binary.BigEndian, &head) // fails for no fixed part
	return head, payload[size:], nil
}

// exactly reads a fixed part with nothing behind it.
func exactly[Head any](payload []byte) (Head, error) {
	head, rest, err := atLeast[Head](payload)
	if err == nil && len(rest) > 0 {
		err = breachOf("P-06", "%T of %d bytes", head, len(payload))
	}
	return head, err
}

func checkStream(number uint8) error {
	if number >= streamCount || streamNames[number] == "" {
		return breachOf("P-09", "stream %d", number)
	}
	return nil
}

func checkMessages(frame messages) (any, error) {
	if frame.Seq > lastSeq-uint64(len(frame.Contents)) {
		return nil, breachOf("P-65", "a message with the last seq, or one behind it")
	}
	return frame, checkStream(frame.stream())
}

// printable makes what a stranger has written fit for a log [P-16].
func printable(text []byte) string {
	text = text[:min(len(text), maxRefuseText)]
	return strings.Map(func(char rune) rune {
		if unicode.IsPrint(char) { // the space is printable; U+FFFD, which stands for bytes that are not UTF-8, is, too
			return char
		}
		return '?'
	}, string(text))
}
