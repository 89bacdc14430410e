package request

import (
	"bytes"
	"sync"
)

// reader reads a body from start to end. encoding/json/jsontext takes 12 times as long for a chat in prose, and 3 times
// for one in code, before anything is hashed, and fails on a body that is cut. Each method leaves the reader behind
// what it read. Where the body ends too early or is no JSON, the reader is at the end, broken, and finds nothing more.
type reader struct {
	body   []byte
	at     int
	broken bool

	api         API
	modelInPath string

	prompt text // the section that is being read
	digest text // a name, a salt, or a medium

	sections    [sectionCount]section
	promptBytes int

	model     span
	adapter   span
	salt      span
	stream    bool
	itemFirst bool // the document comes before the query
}

// readers is the pool of readers. On the stack their 4 KiB would make the runtime grow and copy the stack of each
// call's goroutine, which takes 15 % of a pick of 1 KB, and keep it large for as long as the call lasts.
var readers = sync.Pool{New: func() any { return new(reader) }}

// begin starts a body. It need not clear the texts' buffers, as they are overwritten before they are read.
func (r *reader) begin(f *Facts, modelInPath string, body []byte) {
	r.body, r.api, r.modelInPath = body, f.API, modelInPath
	r.prompt.begin(f.Seed)
	r.prompt.hashes = f.Blocks
	r.digest.begin(f.Seed)
	r.digest.folding = true
}

// end drops all state of a body.
func (r *reader) end() {
	r.body, r.at, r.broken, r.modelInPath = nil, 0, false, ""
	r.prompt.hashes = nil
	r.sections, r.promptBytes = [sectionCount]section{}, 0
	r.model, r.adapter, r.salt, r.stream, r.itemFirst = span{}, span{}, span{}, false, false
}

// span is where a value lies in the body. The empty span stands for no value.
type span struct{ from, to int }

func (r *reader) fail() {
	r.at = len(r.body)
	r.broken = true
}

// peek skips whitespace and returns the byte after it, 0 at the end.
func (r *reader) peek() byte {
	for ; r.at < len(r.body); r.at++ {
		switch c := r.body[r.at]; c {
		case ' ', '\n', '\r', '\t':
		default:
			return c
		}
	}
	r.broken = true
	return 0
}

// enter enters the object or array that comes next, if it opens with this bracket.
func (r *reader) enter(open byte) bool {
	if r.peek() != open {
		return false
	}
	r.at++
	return true
}

// element moves to the next element of the array that the reader is in; false at the array's end.
func (r *reader) element() bool {
	for {
		switch r.peek() {
		case ',':
			r.at++
		case ']':
			r.at++
			return false
		case '}', ':':
			r.fail()
			return false
		default:
			return !r.broken
		}
	}
}

// member moves to the value of the next member of the object that the reader is in; false at the object's end.
func (r *reader) member() (k key, ok bool) {
	for r.peek() == ',' {
		r.at++
	}
	switch r.peek() {
	case '"':
		start := r.at + 1
		r.skipString()
		if r.broken {
			return 0, false
		}
		k = keyOf(r.body[start : r.at-1])
		if r.enter(':') && r.peek() != 0 {
			return k, true
		}
		r.fail()
	case '}':
		r.at++
	default:
		r.fail()
	}
	return 0, false
}

// skipString skips the string that starts here.
func (r *reader) skipString() {
	p := r.body[r.at+1:]
	end := bytes.IndexByte(p, '"')
	if end < 0 {
		r.fail()
		return
	}
	esc := bytes.IndexByte(p[:end], '\\')
	for esc >= 0 { // the bytes before esc hold no quote
		next := esc + 2
		if next >= len(p) {
			r.fail()
			return
		}
		end, esc = next+nextQuote(p[next:]), -1
		if end == len(p) {
			r.fail()
			return
		}
		if p[end] == '\\' {
			esc = end
		}
	}
	r.at += end + 2
}

// skip skips the next value and returns its span. It counts brackets and never recurses, so that deep nesting costs no
// stack.
func (r *reader) skip() span {
	r.peek()
	from, depth := r.at, 0
	for r.at < len(r.body) {
		switch c := r.body[r.at]; c {
		case '"':
			r.skipString()
		case '{', '[':
			depth++
			r.at++
			continue
		case '}', ']', ',', ':':
			if depth == 0 { // a value is missing
				r.fail()
				return span{}
			}
			if c == '}' || c == ']' {
				depth--
			}
			r.at++
		case ' ', '\n', '\r', '\t':
			r.at++
		default:
			r.scalar()
		}
		if depth == 0 {
			break
		}
	}
	if depth > 0 {
		r.fail()
	}
	if r.broken {
		return span{}
	}
	return span{from, r.at}
}

// scalar skips a number or a literal. One that reaches the body's end may be cut, so it counts as broken.
func (r *reader) scalar() []byte {
	from := r.at
	for ; r.at < len(r.body); r.at++ {
		switch r.body[r.at] {
		case ',', ']', '}', ':', '"', ' ', '\n', '\r', '\t', '{', '[':
			return r.body[from:r.at]
		}
	}
	r.broken = true
	return nil
}

// str hashes the string that starts here, unescaped. Most strings have no escape and are hashed in place.
func (r *reader) str(t *text) {
	p := r.body[r.at+1:]
	end := bytes.IndexByte(p, '"')
	run := p
	if end >= 0 {
		run = p[:end]
	}
	if esc := bytes.IndexByte(run, '\\'); esc >= 0 {
		t.write(run[:esc])
		read, closed := t.unescape(p[esc:])
		r.at += 1 + esc + read
		if !closed {
			r.fail()
		}
		return
	}
	t.write(run)
	if end < 0 {
		r.fail()
		return
	}
	r.at += end + 2
}

// tokens hashes a value of any kind: its JSON without whitespace and without escapes. Like skip it never recurses.
func (r *reader) tokens(t *text) {
	depth := 0
	for {
		c := r.peek()
		switch c {
		case 0:
			r.fail()
			return
		case '"':
			if r.str(t); r.broken {
				return
			}
			t.writeByte(markByte)
		case '{', '[':
			depth++
			t.writeByte(c)
			r.at++
		case '}', ']', ',', ':':
			if depth == 0 {
				r.fail()
				return
			}
			if c == '}' || c == ']' {
				depth--
			}
			t.writeByte(c)
			r.at++
		default:
			t.write(r.scalar())
		}
		if depth == 0 || r.broken {
			return
		}
	}
}
