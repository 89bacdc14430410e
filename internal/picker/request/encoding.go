package request

import (
	"compress/flate"
	"compress/gzip"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	// DecodedLimit is how many bytes of an encoded body are decoded: as many as are read of a long plain one. A few hundred
	// bytes can stand for more than that, and what comes after it only makes the prompt longer.
	DecodedLimit = 1 << 20

	// DecodingBytes is the most memory, in bytes, that the reading of an encoded body takes: zstd's window with a head-room of
	// 1 MiB, and the decoded body.
	DecodingBytes = zstdWindow + 1<<20 + DecodedLimit

	// zstdWindow is the largest window of zstd, in bytes, that is decoded: the largest that HTTP allows (RFC 9659).
	zstdWindow = 8 << 20

	// firstRoom is how many bytes of room a decoder begins with.
	firstRoom = 32 << 10

	// decodingTime bounds the time that the decoding of a body takes. DecodedLimit of token ids takes 6 ms. A body of tables
	// that decode to nothing would take 90 ms, and others wait for its turn. On a node so busy that a usual body takes longer,
	// a shorter head of the body is read.
	decodingTime = 50 * time.Millisecond
)

// Encoded says whether the body is encoded, so that reading it costs as much as reading a long one, and takes
// DecodingBytes.
func (h Head) Encoded() bool {
	return h.ContentEncoding != "" && codingOf(h.ContentEncoding) != "identity"
}

// codingOf returns the name of a single encoding. Several encodings are none that is known.
func codingOf(contentEncoding string) string {
	return strings.ToLower(strings.TrimSpace(contentEncoding))
}

// decoder decodes bodies, one after the other.
type decoder struct {
	source  source
	gzip    gzip.Reader
	deflate io.ReadCloser
	zstd    *zstd.Decoder // nil before the first body in zstd
	out     []byte
}

// decoders is the pool of decoders. A new one takes 50 KB, and one that has decoded zstd up to DecodingBytes. The pool has
// as many as decoded at once, until the garbage collector clears it.
var decoders = sync.Pool{New: func() any { return &decoder{deflate: flate.NewReader(nil)} }}

// decode returns the head of a decoded body, valid until end. Where the body is cut or malformed, or the time is over,
// the head is what was decoded until then.
func (d *decoder) decode(contentEncoding string, body []byte, until time.Time) []byte {
	d.out = d.out[:0]
	d.source = source{rest: body, until: until}
	from := d.open(codingOf(contentEncoding))
	if from == nil {
		return nil
	}
	for len(d.out) < DecodedLimit {
		if len(d.out) == cap(d.out) {
			d.out = slices.Grow(d.out, min(max(len(d.out), firstRoom), DecodedLimit-len(d.out)))
		}
		n, err := from.Read(d.out[len(d.out):min(cap(d.out), DecodedLimit)])
		d.out = d.out[:len(d.out)+n]
		if err != nil {
			break
		}
	}
	return d.out
}

// open returns a reader of the decoded body, or nil where the encoding is unknown or the body is in another one.
func (d *decoder) open(coding string) io.Reader {
	var err error
	switch coding {
	case "gzip", "x-gzip":
		err = d.gzip.Reset(&d.source)
		return readerUnless(err, &d.gzip)
	case "deflate":
		d.source.skipZlibHeader()
		err = d.deflate.(flate.Resetter).Reset(&d.source, nil)
		return readerUnless(err, d.deflate)
	case "zstd":
		if d.zstd == nil {
			d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true))
		}
		if err == nil {
			err = d.zstd.Reset(&d.source)
		}
		return readerUnless(err, d.zstd)
	}
	return nil
}

func readerUnless(err error, r io.Reader) io.Reader {
	if err != nil {
		return nil
	}
	return r
}

// end lets go of the body.
func (d *decoder) end() {
	d.source = source{}
	if d.zstd != nil {
		_ = d.zstd.Reset(nil) // it cannot fail
	}
}

// source is the encoded body. It ends early when the time is over.
type source struct {
	rest  []byte
	until time.Time
	reads int
}

// readsPerLook is how many reads there are from one look at the clock to the next. Most are of one byte, and a body of
// tables takes 0.1 ms for as many bytes.
const readsPerLook = 1024

// late says whether the time is over.
func (s *source) late() bool {
	s.reads++
	if s.reads%readsPerLook == 0 && time.Now().After(s.until) {
		s.rest = nil
	}
	return len(s.rest) == 0
}

func (s *source) Read(p []byte) (int, error) {
	if s.late() {
		return 0, io.EOF
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// ReadByte makes the decoders of the standard library read without a buffer of their own.
func (s *source) ReadByte() (byte, error) {
	if s.late() {
		return 0, io.EOF
	}
	c := s.rest[0]
	s.rest = s.rest[1:]
	return c, nil
}

// skipZlibHeader skips the two bytes that begin deflated data as HTTP defines it (RFC 9110, 8.4.1.2). Some clients leave
// them out. A dictionary, which would follow them, makes the data unreadable.
func (s *source) skipZlibHeader() {
	const method, deflated = 0x0F, 8
	if p := s.rest; len(p) >= 2 && p[0]&method == deflated && (int(p[0])<<8|int(p[1]))%31 == 0 {
		s.rest = p[2:]
	}
}
