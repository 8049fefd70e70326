// Envelopes: what a message says of itself beside its data.

package main

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// The bits of `fields`, in whose order the values follow each other.
const (
	hasSubject = 1 << iota
	hasExchange
	hasID
	hasRef
	hasConsumer
	hasMsLeft
	hasCodec
	hasPriority
	hasAttempt
	hasHeaders

	hasLater = 0xffff &^ (hasHeaders<<1 - 1) // what later versions add
)

// An envelope. What Fields does not name is 0, or empty. One that is nil is none: nothing on the wire.
type envelope struct {
	Kind              uint8
	Fields            uint16
	Subject, Exchange string
	ID, Ref           uint64
	Consumer, MsLeft  uint32
	Codec             uint8
	Priority, Attempt uint8
	Headers           []header
}

type (
	envelopeHead struct {
		Size   uint16
		Kind   uint8
		Fields uint16
	}
	header struct{ Key, Value string }
)

// plus tells the envelope of a message n places behind this one's, where one envelope stands for all [P-75].
func (e *envelope) plus(n uint64) *envelope {
	if e == nil || n == 0 || e.Fields&(hasID|hasRef) == 0 {
		return e
	}
	counted := *e
	counted.ID += n // not written, where Fields does not name it
	counted.Ref += n
	return &counted
}

// encode makes the envelope's bytes, with its size in front. Nothing of a later version is in it [P-74].
func (e *envelope) encode() []byte {
	if e == nil {
		return nil
	}
	var out bytes.Buffer
	binary.Write(&out, binary.BigEndian, envelopeHead{0, e.Kind, e.Fields})
	put := func(bit uint16, value any) {
		if e.Fields&bit != 0 {
			binary.Write(&out, binary.BigEndian, value) // fails for no number and no bytes
		}
	}
	put(hasSubject, shortText(e.Subject))
	put(hasExchange, shortText(e.Exchange))
	put(hasID, e.ID)
	put(hasRef, e.Ref)
	put(hasConsumer, e.Consumer)
	put(hasMsLeft, e.MsLeft)
	put(hasCodec, e.Codec)
	put(hasPriority, e.Priority)
	put(hasAttempt, e.Attempt)
	var headers []byte
	for _, one := range e.Headers {
		headers = append(headers, shortText(one.Key)...)
		headers = binary.BigEndian.AppendUint16(headers, uint16(len(one.Value)))
		headers = append(headers, one.Value...)
	}
	put(hasHeaders, uint16(len(headers)))
	put(hasHeaders, headers)
	made := out.Bytes()
	binary.BigEndian.PutUint16(made, uint16(len(made)-2)) // the size does not count itself
	return made
}

func shortText(text string) []byte { return append([]byte{byte(len(text))}, text...) }

// parseEnvelope reads an envelope, and returns what stands behind it.
func parseEnvelope(from []byte) (*envelope, []byte, error) {
	outside := reader{left: from}
	in := reader{left: outside.take(uint64(outside.number(2)))}
	e := &envelope{Kind: uint8(in.number(1)), Fields: uint16(in.number(2))}
	has := func(bit uint16) bool { return e.Fields&bit != 0 }
	number := func(bit uint16, size uint64) uint64 {
		if has(bit) {
			return in.number(size)
		}
		return 0
	}
	if has(hasSubject) {
		e.Subject = in.name()
	}
	if has(hasExchange) {
		e.Exchange = in.name()
	}
	e.ID, e.Ref = number(hasID, 8), number(hasRef, 8)
	e.Consumer, e.MsLeft = uint32(number(hasConsumer, 4)), uint32(number(hasMsLeft, 4))
	e.Codec = uint8(number(hasCodec, 1))
	e.Priority, e.Attempt = uint8(number(hasPriority, 1)), uint8(number(hasAttempt, 1))
	if has(hasHeaders) {
		e.Headers = in.headers()
	}
	if len(in.left) > 0 && !has(hasLater) {
		in.fail("P-71", "an envelope with more bytes than values")
	}
	e.Fields &^= hasLater // passed over [P-74]
	if outside.err != nil {
		return nil, nil, outside.err
	}
	return e, outside.left, in.err
}

// A reader reads an envelope's values. It keeps the first error, and reads zeros from then on.
type reader struct {
	left []byte
	err  error
}

func (r *reader) fail(rule, what string) {
	if r.err == nil {
		r.err = breachOf(rule, "%s", what)
	}
	r.left = nil
}

func (r *reader) take(size uint64) []byte {
	if size > uint64(len(r.left)) {
		r.fail("P-71", "an envelope, or a value in it, that is cut")
		return nil
	}
	taken := r.left[:size]
	r.left = r.left[size:]
	return taken
}

func (r *reader) number(size uint64) (n uint64) {
	for _, digit := range r.take(size) {
		n = n<<8 | uint64(digit)
	}
	return n
}

func (r *reader) text(size uint64) string {
	taken := r.take(size)
	if !utf8.Valid(taken) {
		r.fail("P-72", "a text that is not UTF-8")
	}
	return string(bytes.Clone(taken))
}

// name reads a subject, an exchange or the key of a header.
func (r *reader) name() string {
	size := r.number(1)
	if size == 0 {
		r.fail("P-72", "a subject, an exchange or a key without a byte")
	}
	return r.text(size)
}

func (r *reader) headers() (found []header) {
	in := reader{left: r.take(r.number(2))}
	keys := map[string]bool{}
	for len(in.left) > 0 {
		one := header{Key: in.name()}
		one.Value = in.text(in.number(2))
		if keys[one.Key] {
			in.fail("P-73", "two headers of one key")
		}
		keys[one.Key] = true
		found = append(found, one)
	}
	if in.err != nil && r.err == nil {
		r.err, r.left = in.err, nil
	}
	return found
}
