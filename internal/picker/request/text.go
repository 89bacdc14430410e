package request

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	word   = 8
	window = 64 // bytes that unescape searches together
	ahead  = 16 // bytes behind them that it may read: the longest escape, \uXXXX\uXXXX, has 12

	// room is how many bytes are buffered before they are hashed. To hash each block when it is full takes a fifth to a
	// half longer: its bytes were just written in odd pieces, and each load waits until they are in the cache.
	room = 8 * BlockBytes
)

// text cuts a text that comes in pieces into blocks, and hashes each block. Pieces that span whole blocks are hashed in
// place; only the rest is copied.
type text struct {
	buf    [room + window + word]byte
	n      int // bytes in buf, below room between calls
	blocks int // whole blocks before those in buf, whether hashed or over the limit

	seed uint64 // the seed of all hashes

	// hashes are the blocks' hashes, each by itself. They are chained when the model's name is known.
	hashes []uint64
	limit  int // the most hashes

	// folding joins the hashes of all blocks into one digest instead.
	folding bool
	digest  uint64
}

// begin empties the text, and sets the seed of its hashes.
func (t *text) begin(seed uint64) {
	t.n, t.blocks, t.seed, t.hashes, t.limit, t.folding, t.digest = 0, 0, seed, nil, 0, false, 0
}

// len returns the length of the text so far.
func (t *text) len() int { return t.blocks*BlockBytes + t.n }

func (t *text) block(p []byte) {
	t.blocks++
	if t.folding {
		t.digest = joinBlock.with(t.seed, t.digest, hashOf(t.seed, p))
	} else if len(t.hashes) < t.limit {
		t.hashes = append(t.hashes, hashOf(t.seed, p))
	}
}

// spill hashes the whole blocks in the buffer and moves the bytes behind them to its start.
func (t *text) spill() {
	full := t.n / BlockBytes * BlockBytes
	for i := 0; i < full; i += BlockBytes {
		t.block(t.buf[i : i+BlockBytes])
	}
	t.n = copy(t.buf[:], t.buf[full:t.n])
}

func (t *text) write(p []byte) {
	if t.n > 0 {
		c := min(len(p), (room-t.n)%BlockBytes)
		copy(t.buf[t.n:], p[:c])
		t.n += c
		if p = p[c:]; len(p) == 0 {
			t.settle()
			return
		}
		t.spill()
	}
	for len(p) >= BlockBytes {
		t.block(p[:BlockBytes])
		p = p[BlockBytes:]
	}
	t.n = copy(t.buf[:], p)
}

func (t *text) writeByte(c byte) {
	t.buf[t.n] = c
	t.n++
	t.settle()
}

// settle spills a full buffer.
func (t *text) settle() {
	if t.n >= room {
		t.spill()
	}
}

// rest takes the last bytes, which fill no block, and returns their hash. The next text starts at a block's start.
func (t *text) rest() (hash uint64, length int) {
	t.spill()
	length, t.n = t.n, 0
	if length == 0 {
		return 0, 0
	}
	return hashOf(t.seed, t.buf[:length]), length
}

// sum returns the digest of a folding text, and empties the text.
func (t *text) sum() uint64 {
	rest, _ := t.rest()
	sum := joinRest.with(t.seed, t.digest, rest)
	t.digest, t.blocks = 0, 0
	return sum
}

// escapes maps the byte after a backslash to the character of both. Zero stands for the byte itself, but not for u.
var escapes = [256]byte{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', '"': '"', '\\': '\\', '/': '/'}

// masks are constants of windowQuotes. As variables they stay in registers; as 64-bit constants they would be part of
// each instruction that uses them, which takes a tenth longer.
var masks = struct{ quotes, backslashes, lows, gather uint64 }{
	quotes:      0x0101010101010101 * '"',
	backslashes: 0x0101010101010101 * '\\',
	lows:        0x7f7f7f7f7f7f7f7f,
	gather:      0x0002040810204081, // gathers the highest bits of eight bytes in the topmost byte
}

// windowQuotes marks in a window the bytes that are '"' or '\\', one bit for each byte.
func windowQuotes(p *[window]byte) uint64 {
	quotes, backslashes, lows, gather := masks.quotes, masks.backslashes, masks.lows, masks.gather
	var others uint64
	for i := 0; i < window; i += word {
		w := binary.LittleEndian.Uint64(p[i:])
		q, b := w^quotes, w^backslashes
		// The highest bit of a byte is now 0 where the byte is one of the two.
		w = ((q&lows + lows) | q) & ((b&lows + lows) | b) &^ lows
		others = others>>word | w*gather&^(1<<56-1)
	}
	return ^others
}

// unescape writes the string whose content starts at p, up to its closing quote, and returns how many bytes it read,
// the quote included. Code and JSON inside JSON have an escape every 5 to 30 bytes. A search that starts at the end of
// the last escape has to wait for it, so all escapes of a window are found first. An escape that the end of p cuts is
// not written: it could be half of a character.
func (t *text) unescape(p []byte) (read int, closed bool) {
	i := 0
	for i+window+ahead <= len(p) {
		next, closed := t.unescapeWindow((*[window + ahead]byte)(p[i:]), p[i:])
		if i += next; closed {
			return i, true
		}
	}
	for i < len(p) {
		switch c := p[i]; c {
		case '"':
			return i + 1, true
		case '\\':
			size := t.escape(p[i:])
			if size == 0 {
				return len(p), false
			}
			i += size
		default:
			t.writeByte(c)
			i++
		}
	}
	return i, false
}

// unescapeWindow is unescape for the first window of p. The bytes behind the window allow it to copy whole words, and
// to read escapes that begin in the window and end behind it.
func (t *text) unescapeWindow(w *[window + ahead]byte, p []byte) (read int, closed bool) {
	n, i := t.n, 0
	for marks := windowQuotes((*[window]byte)(w[:])); marks != 0; {
		k := bits.TrailingZeros64(marks) & (window - 1)
		t.copy(n, w, i, k)
		n += k - i
		if w[k] == '"' {
			t.n = n
			t.settle()
			return k + 1, true
		}
		if e := escapes[w[k+1]]; e != 0 { // nearly always
			t.buf[n] = e
			n++
			i = k + 2
		} else if r, ok := hex4((*[4]byte)(w[k+2:])); ok && w[k+1] == 'u' && !utf16.IsSurrogate(r) {
			n += utf8.EncodeRune(t.buf[n:], r)
			i = k + len(`\u0000`)
		} else {
			t.n = n
			t.settle()
			i = k + t.escape(p[k:]) // never 0: p has as many bytes as the longest escape
			n = t.n
		}
		if i >= window {
			t.n = n
			t.settle()
			return i, false
		}
		marks &^= 1<<(i&(window-1)) - 1
	}
	t.copy(n, w, i, window)
	t.n = n + window - i
	t.settle()
	return window, false
}

// copy copies w[from:to] into the buffer at n, and perhaps some bytes beyond.
func (t *text) copy(n int, w *[window + ahead]byte, from, to int) {
	for ; from < to; n, from = n+word, from+word {
		binary.LittleEndian.PutUint64(t.buf[n:], binary.LittleEndian.Uint64(w[from&(window-1):]))
	}
}

// escape writes the character of the escape at p's start, and returns the escape's length; 0 if p ends before it does.
func (t *text) escape(p []byte) int {
	if len(p) > 1 && p[1] != 'u' {
		t.writeByte(shortEscape(p[1]))
		return 2
	}
	r, size := unicodeEscape(p)
	if size > 0 {
		var enc [utf8.UTFMax]byte
		t.write(enc[:utf8.EncodeRune(enc[:], r)])
	}
	return size
}

func shortEscape(c byte) byte {
	if e := escapes[c]; e != 0 {
		return e
	}
	return c
}

// unescaped returns a copy of a string's whole content with its escapes resolved.
func unescaped(p []byte) []byte {
	out := make([]byte, 0, len(p))
	for len(p) > 0 {
		i := nextQuote(p)
		out, p = append(out, p[:i]...), p[i:]
		switch {
		case len(p) < 2:
			return out
		case p[1] != 'u':
			out, p = append(out, shortEscape(p[1])), p[2:]
		default:
			r, size := unicodeEscape(p)
			if size == 0 {
				return out
			}
			out, p = utf8.AppendRune(out, r), p[size:]
		}
	}
	return out
}

// unicodeEscape reads \uXXXX at p's start, or two of them that make up one character. A lone half of a pair, or invalid
// digits, stand for U+FFFD. The size is 0 if p ends too early to decide.
func unicodeEscape(p []byte) (r rune, size int) {
	const one, two = len(`\u0000`), len(`\u0000\u0000`)
	if len(p) < one {
		return 0, 0
	}
	r, ok := hex4((*[4]byte)(p[2:]))
	switch {
	case !ok:
		return utf8.RuneError, 2
	case !utf16.IsSurrogate(r):
		return r, one
	case len(p) > one && p[one] != '\\', len(p) > one+1 && p[one+1] != 'u':
		return utf8.RuneError, one
	case len(p) < two:
		return 0, 0
	}
	if low, ok := hex4((*[4]byte)(p[one+2:])); ok {
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, two
		}
	}
	return utf8.RuneError, one
}

func hex4(p *[4]byte) (r rune, ok bool) {
	r = digits[p[0]]<<12 | digits[p[1]]<<8 | digits[p[2]]<<4 | digits[p[3]]
	return r, r >= 0
}

// digits holds the values of hexadecimal digits, and -1 for all other bytes.
var digits = func() (d [256]rune) {
	for i := range d {
		d[i] = -1
	}
	for i, c := range "0123456789abcdef" {
		d[c] = rune(i)
	}
	for i, c := range "ABCDEF" {
		d[c] = rune(10 + i)
	}
	return d
}()

// nextQuote returns the place of the first '"' or '\\', or len(p) if there is none.
func nextQuote(p []byte) int {
	i := 0
	for ; i+window <= len(p); i += window {
		if marks := windowQuotes((*[window]byte)(p[i:])); marks != 0 {
			return i + bits.TrailingZeros64(marks)
		}
	}
	for ; i < len(p) && p[i] != '"' && p[i] != '\\'; i++ {
	}
	return i
}
