package kvevents

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// The most that a peer may send. vLLM's largest batches, of prompts of 100,000 tokens, are below 1 MiB.
const (
	maxPayload = 4 << 20 // the last frame of a message
	maxHead    = 1 << 10 // any frame before it, such as the topic
	maxCommand = 1 << 10
	maxFrames  = 8
)

// errTooLarge is the error of a message or a replay beyond the bounds.
var errTooLarge = errors.New("the server sent more than is read")

// protocolError is what a peer does that is no ZMTP.
type protocolError string

func (e protocolError) Error() string { return "the server does not speak ZMTP 3: " + string(e) }

// The bits of a frame's flags.
const (
	flagMore    = 1
	flagLong    = 2
	flagCommand = 4
)

// wire is the part of ZeroMQ's protocol that a subscriber needs: ZMTP 3.0 and 3.1 with the NULL mechanism
// (https://rfc.zeromq.org/spec/23/ and https://rfc.zeromq.org/spec/37/).
//
// It is not a library, because the well-kept one in Go, github.com/go-zeromq/zmq4 v0.17.0, allocates whatever length a
// peer announces: a server could take all of the picker's memory with nine bytes.
type wire struct {
	link   *link
	reader *bufio.Reader
	minor  byte // the peer's ZMTP is 3.minor
	hold   *hold
	buffer []byte // the message's frames, one behind the other
	frames [][]byte
}

// shake makes the handshake: this side is a socket of type own, and the peer must be one of theirs. The hold takes the
// memory of messages. Each side's READY waits for the other's greeting: libzmq 4.3.5 closes a connection on which READY
// comes in one segment with the greeting.
func shake(l *link, h *hold, own string, theirs ...string) (*wire, error) {
	w := &wire{link: l, reader: l.buffered(), hold: h}
	l.within(l.timeout)
	if err := l.write(greeting()); err != nil {
		return nil, err
	}
	if err := w.readGreeting(); err != nil {
		return nil, err
	}
	if err := l.write(command("READY", typeProperty(own))); err != nil {
		return nil, err
	}
	return w, w.awaitReady(theirs)
}

// greeting says ZMTP 3.1 with the NULL mechanism, as a client.
func greeting() []byte {
	out := make([]byte, 64)
	out[0], out[9] = 0xff, 0x7f
	out[10], out[11] = 3, 1
	copy(out[12:], "NULL")
	return out
}

func (w *wire) readGreeting() error {
	var got [64]byte
	// The version comes first: peers of ZMTP 2 and 1 send less behind it.
	if _, err := io.ReadFull(w.reader, got[:11]); err != nil {
		return err
	}
	if got[0] != 0xff || got[9]&1 == 0 || got[10] < 3 {
		return protocolError(fmt.Sprintf("its greeting begins with %x", got[:11]))
	}
	if _, err := io.ReadFull(w.reader, got[11:]); err != nil {
		return err
	}
	if mechanism := bytes.TrimRight(got[12:32], "\x00"); string(mechanism) != "NULL" {
		return protocolError(fmt.Sprintf("its security mechanism is %q, and only NULL is known", mechanism))
	}
	w.minor = got[11]
	return nil
}

func (w *wire) awaitReady(theirs []string) error {
	f, err := w.head()
	if err != nil {
		return err
	}
	if !f.command {
		return protocolError("it sent a message before READY")
	}
	name, body, err := w.readCommand(f)
	if err != nil {
		return err
	}
	if name != "READY" {
		return protocolError(fmt.Sprintf("it sent %q before READY", name))
	}
	if socket := socketType(body); !slices.Contains(theirs, socket) {
		return protocolError(fmt.Sprintf("its socket is of type %q, want one of %q", socket, theirs))
	}
	return nil
}

// socketType returns the value of the property Socket-Type.
func socketType(properties []byte) string {
	for len(properties) > 0 {
		n := int(properties[0])
		if len(properties) < 1+n+4 {
			return ""
		}
		name, rest := properties[1:1+n], properties[1+n:]
		size := uint64(binary.BigEndian.Uint32(rest))
		if uint64(len(rest)) < 4+size {
			return ""
		}
		if bytes.EqualFold(name, []byte("Socket-Type")) {
			return string(rest[4 : 4+size])
		}
		properties = rest[4+size:]
	}
	return ""
}

// subscribe asks a publisher for all messages.
func (w *wire) subscribe() error {
	if w.minor == 0 {
		return w.link.write(frame(0, []byte{1}))
	}
	return w.link.write(command("SUBSCRIBE", nil))
}

// ask sends a message to a ROUTER, as a REQ socket does: its first frame is empty.
func (w *wire) ask(body []byte) error {
	return w.link.write(append(frame(flagMore, nil), frame(0, body)...))
}

// frame returns a frame of at most 255 bytes.
func frame(flags byte, body []byte) []byte {
	return append([]byte{flags, byte(len(body))}, body...)
}

func command(name string, body []byte) []byte {
	return frame(flagCommand, slices.Concat([]byte{byte(len(name))}, []byte(name), body))
}

// typeProperty is the property that says what a socket is.
func typeProperty(value string) []byte {
	const name = "Socket-Type"
	out := append([]byte{byte(len(name))}, name...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(value)))
	return append(out, value...)
}

// await waits for a message to begin, as long as the peer is there: after the quiet time the peer is sent a PING. A peer
// of ZMTP 3.0 knows none, and TCP's keepalive must do. Once it has begun, the message has the quiet time to come.
func (w *wire) await(quiet time.Duration) error {
	for asked := false; ; {
		w.link.within(quiet)
		_, err := w.reader.Peek(1)
		if err == nil {
			w.link.within(quiet)
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if w.minor == 0 {
			continue
		}
		if asked {
			return fmt.Errorf("the server has sent nothing and answered no PING for %v: %w", 2*quiet, err)
		}
		if err := w.link.write(command("PING", []byte{0, 0})); err != nil { // no time to live, no context
			return err
		}
		asked = true
	}
}

// message reads a message. The frames are valid until the next call. Where a command comes instead, it is answered, and
// there are no frames.
func (w *wire) message() ([][]byte, error) {
	ends := make([]int, 0, maxFrames)
	used := 0
	for {
		f, err := w.head()
		if err != nil {
			return nil, err
		}
		if f.command {
			if err := w.answer(f); err != nil {
				return nil, err
			}
			if len(ends) == 0 {
				return nil, nil
			}
			continue
		}
		if len(ends) == maxFrames {
			return nil, fmt.Errorf("a message of more than %d frames: %w", maxFrames, errTooLarge)
		}
		if used, err = w.body(used, int(f.size)); err != nil {
			return nil, err
		}
		if ends = append(ends, used); !f.more {
			return w.split(ends), nil
		}
	}
}

func (w *wire) split(ends []int) [][]byte {
	w.frames = w.frames[:0]
	start := 0
	for _, end := range ends {
		w.frames = append(w.frames, w.buffer[start:end])
		start = end
	}
	return w.frames
}

// frameHead is what comes before a frame's body.
type frameHead struct {
	more, command bool
	size          uint64
}

// head reads a frame's flags and its size, which is within the bounds.
func (w *wire) head() (frameHead, error) {
	var f frameHead
	if err := w.link.pay(frameCost); err != nil {
		return f, err
	}
	flags, err := w.reader.ReadByte()
	if err != nil {
		return f, err
	}
	f.more, f.command = flags&flagMore != 0, flags&flagCommand != 0
	if flags > flagMore|flagLong|flagCommand || f.more && f.command {
		return f, protocolError(fmt.Sprintf("the flags of a frame are %x", flags))
	}
	var size [8]byte
	short := size[7:]
	if flags&flagLong != 0 {
		short = size[:]
	}
	if _, err := io.ReadFull(w.reader, short); err != nil {
		return f, err
	}
	f.size = binary.BigEndian.Uint64(size[:])
	most := uint64(maxPayload)
	switch {
	case f.command:
		most = maxCommand
	case f.more:
		most = maxHead
	}
	if f.size > most {
		return f, fmt.Errorf("a frame of %d bytes where %d are the most: %w", f.size, most, errTooLarge)
	}
	return f, nil
}

// body reads a frame's body into the buffer behind the first used bytes, and returns how many are used then. The buffer
// grows with what came, not with what was announced.
func (w *wire) body(used, size int) (int, error) {
	for end := used + size; used < end; {
		if used == len(w.buffer) {
			if err := w.grow(end); err != nil {
				return used, err
			}
		}
		n, err := io.ReadFull(w.reader, w.buffer[used:min(end, len(w.buffer))])
		used += n
		if err != nil {
			return used, err
		}
	}
	return used, nil
}

const (
	leastBuffer = 4 << 10
	keptBuffer  = 64 << 10
)

// grow doubles the buffer, up to need where that is less.
func (w *wire) grow(need int) error {
	size := min(max(2*len(w.buffer), leastBuffer), max(need, leastBuffer))
	if err := w.hold.set(int64(size + len(w.buffer))); err != nil { // both are there while one is copied
		return err
	}
	larger := make([]byte, size)
	copy(larger, w.buffer)
	w.buffer = larger
	return w.hold.set(int64(size))
}

// shrink gives a large buffer back; the last message is then no longer valid.
func (w *wire) shrink() {
	if len(w.buffer) > keptBuffer {
		w.buffer, w.frames = nil, nil
		w.hold.free()
	}
}

// readCommand reads a command: the length of its name, its name, and what it says.
func (w *wire) readCommand(f frameHead) (name string, body []byte, err error) {
	all := make([]byte, f.size)
	if _, err := io.ReadFull(w.reader, all); err != nil {
		return "", nil, err
	}
	if len(all) == 0 || len(all) < 1+int(all[0]) {
		return "", nil, protocolError("a command has no name")
	}
	end := 1 + int(all[0])
	name, body = string(all[1:end]), all[end:]
	if name == "ERROR" {
		return "", nil, protocolError(fmt.Sprintf("it sent the error %q", body[min(1, len(body)):]))
	}
	return name, body, nil
}

// answer reads a command and answers a PING with what it says behind its time to live. Other commands are left out.
func (w *wire) answer(f frameHead) error {
	name, body, err := w.readCommand(f)
	if err != nil || name != "PING" || len(body) < 2 {
		return err
	}
	return w.link.write(command("PONG", body[2:min(len(body), 2+16)]))
}

// close ends the connection and gives its memory back.
func (w *wire) close() {
	w.link.close()
	w.buffer, w.frames = nil, nil
	w.hold.free()
}
