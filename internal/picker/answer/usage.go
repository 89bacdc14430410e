// Package answer reads what the end of a model server's answer says of the tokens that were used.
package answer

import (
	"bytes"
	"slices"
)

// What an answer says of the tokens that were used stands at its end, so only its end is kept. It is read backwards, as
// there it is certain where a text or an object ends, whereas at the beginning of what was kept it is not. The rules are
// those of OpenAI's Chat Completions, Completions, Embeddings and Responses, and of Anthropic's Messages.

// tailLength is how much of an answer's end is kept: a usage takes some 200 bytes, and what may follow it, such as the
// settings and tools that a response of OpenAI's repeats, seldom more than a few thousand.
const tailLength = 8 << 10

// Tail is the end of an answer. The zero value is that of one of which nothing has come.
type Tail struct {
	ring    [tailLength]byte
	written int // of the whole answer
}

// Add takes the answer's next piece.
func (t *Tail) Add(piece []byte) {
	if skipped := len(piece) - tailLength; skipped > 0 {
		piece, t.written = piece[skipped:], t.written+skipped
	}
	for len(piece) > 0 {
		n := copy(t.ring[t.written%tailLength:], piece)
		piece, t.written = piece[n:], t.written+n
	}
}

// bytes are what is kept, in one piece, and whether the answer's beginning is missing. They are valid until reset, and
// nothing may be added any more.
func (t *Tail) bytes() (kept []byte, cut bool) {
	if t.written <= tailLength {
		return t.ring[:t.written], false
	}
	// The ring is turned in its place until the oldest byte is the first.
	oldest := t.written % tailLength
	slices.Reverse(t.ring[:oldest])
	slices.Reverse(t.ring[oldest:])
	slices.Reverse(t.ring[:])
	return t.ring[:], true
}

// Empty says that nothing of the answer has come.
func (t *Tail) Empty() bool { return t.written == 0 }

// Usage is what the answer says of its tokens. It is false where it says nothing. Nothing may be added any more.
func (t *Tail) Usage() (Usage, bool) { return readUsage(t.bytes()) }

// Reset makes it the tail of another answer.
func (t *Tail) Reset() { t.written = 0 }

// Usage is the tokens that an answer says were used. Cached are those of the prompt that were in the prefix cache.
type Usage struct{ Prompt, Cached, Completion int }

// reading is what was found of a usage so far, by the names that the APIs have for it. A name that was found has its
// last value: in a stream, later events count all that earlier ones did.
type reading struct {
	found [usageFields]bool
	value [usageFields]int
}

// usageField is one of the numbers in a usage.
type usageField int

const (
	input        usageField = iota // prompt_tokens, or input_tokens
	output                         // completion_tokens, or output_tokens
	cachedInput                    // cached_tokens in the details of the former
	cacheRead                      // Anthropic's: not in input_tokens
	cacheCreated                   // Anthropic's: not in input_tokens
	usageFields
)

// readUsage finds the usage in an answer or in its end: of one JSON object, or of a stream of server-sent events. It
// is false where there is none, whatever else the answer is.
func readUsage(answer []byte, cut bool) (Usage, bool) {
	var r reading
	if isEvents(answer, cut) {
		r.readEvents(answer, cut)
	} else {
		r.readObject(answer, cut)
	}
	if !r.found[input] && !r.found[output] {
		return Usage{}, false
	}
	// Anthropic counts what came from the cache, or went into it, beside the input; OpenAI within it.
	out := Usage{
		Prompt:     r.value[input] + r.value[cacheRead] + r.value[cacheCreated],
		Cached:     r.value[cachedInput] + r.value[cacheRead],
		Completion: r.value[output],
	}
	return out, out.Cached <= out.Prompt
}

// isEvents tells a stream of events from JSON, in which no line can begin so: its texts have no line breaks.
func isEvents(answer []byte, cut bool) bool {
	for _, field := range []string{"data:", "event:", "id:", ":"} {
		if !cut && bytes.HasPrefix(answer, []byte(field)) {
			return true
		}
	}
	return bytes.Contains(answer, []byte("\ndata:"))
}

// readEvents reads the events from the last to the first. Of a line whose beginning is missing it is not known whether
// it is one, but if it ends with a usage, it is.
func (r *reading) readEvents(events []byte, cut bool) {
	for len(events) > 0 {
		at := bytes.LastIndexByte(events, '\n') + 1
		line := events[at:]
		events = events[:max(at-1, 0)]
		data, ok := bytes.CutPrefix(line, []byte("data:"))
		if first := at == 0 && cut; ok || first {
			r.readObject(data, first)
		}
	}
}

// readObject reads the usage of a JSON object. It stands in it as such or, in events, in the response or message that
// the event is about; where the beginning of that is missing, so is its name.
func (r *reading) readObject(object []byte, cut bool) {
	var own, inner []byte
	innerOf := "" // the name of what inner is a member of
	members(object, func(depth int, key, value []byte) {
		isUsage := string(key) == "usage" && len(value) > 0 && value[0] == '{'
		switch {
		case isUsage && depth == 1 && own == nil:
			own = value
		case isUsage && depth == 2 && innerOf == "":
			inner = value
		case depth == 1 && inner != nil && innerOf == "": // members are told before what they are members of
			if innerOf = string(key); innerOf != "response" && innerOf != "message" {
				inner, innerOf = nil, ""
			}
		}
	})
	switch {
	case own != nil:
		r.readMembers(own)
	case innerOf != "" || cut:
		r.readMembers(inner)
	}
}

// readMembers takes the numbers of a usage that no later one has told already.
func (r *reading) readMembers(of []byte) {
	members(of, func(depth int, key, value []byte) {
		field, known := usageFields, false
		switch name := string(key); {
		case depth == 1:
			field, known = fieldOf(name)
		case name == "cached_tokens":
			field, known = cachedInput, true
		}
		if known && !r.found[field] {
			r.value[field], r.found[field] = count(value)
		}
	})
}

func fieldOf(name string) (usageField, bool) {
	switch name {
	case "prompt_tokens", "input_tokens":
		return input, true
	case "completion_tokens", "output_tokens":
		return output, true
	case "cache_read_input_tokens":
		return cacheRead, true
	case "cache_creation_input_tokens":
		return cacheCreated, true
	}
	return usageFields, false
}

// mostTokens is more than any answer uses. What claims more is wrong, and would spoil the sums.
const mostTokens = 1 << 30

// count reads a JSON number of tokens.
func count(value []byte) (n int, ok bool) {
	for _, c := range value {
		if c < '0' || c > '9' || n > mostTokens {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, len(value) > 0 && n <= mostTokens
}
