// Package answer reads how many tokens a model server's answer reports as used. It must not know endpoints or pools.
package answer

import (
	"bytes"
	"slices"
)

// An answer reports the used tokens at its end, so only the end is kept. It is read backwards: at the end it is certain
// where a string or an object ends, and at the start of the kept part it is not. The formats are those of OpenAI's Chat
// Completions, Completions, Embeddings and Responses, and of Anthropic's Messages.

// tailLength is how many bytes of an answer's end are kept. A usage takes some 200 bytes, and what may follow it, such
// as the settings and tools that OpenAI's Responses repeat, seldom more than a few thousand.
const tailLength = 8 << 10

// Tail is the end of an answer. The zero value is empty.
type Tail struct {
	ring    [tailLength]byte
	written int // bytes of the whole answer
}

// Add adds the answer's next piece.
func (t *Tail) Add(piece []byte) {
	if skipped := len(piece) - tailLength; skipped > 0 {
		piece, t.written = piece[skipped:], t.written+skipped
	}
	for len(piece) > 0 {
		n := copy(t.ring[t.written%tailLength:], piece)
		piece, t.written = piece[n:], t.written+n
	}
}

// bytes returns the kept end in one piece, and whether the answer's beginning is missing. The result is valid until
// Reset, and nothing may be added afterwards.
func (t *Tail) bytes() (kept []byte, cut bool) {
	if t.written <= tailLength {
		return t.ring[:t.written], false
	}
	// The ring is rotated in place until the oldest byte is the first.
	oldest := t.written % tailLength
	slices.Reverse(t.ring[:oldest])
	slices.Reverse(t.ring[oldest:])
	slices.Reverse(t.ring[:])
	return t.ring[:], true
}

// Empty says that nothing of the answer has come.
func (t *Tail) Empty() bool { return t.written == 0 }

// Usage returns the tokens that the answer reports, and false where it reports none. Nothing may be added afterwards.
func (t *Tail) Usage() (Usage, bool) { return readUsage(t.bytes()) }

// Reset empties the tail for another answer.
func (t *Tail) Reset() { t.written = 0 }

// Usage is the number of tokens that an answer reports as used. Cached are the prompt tokens found in the prefix cache.
type Usage struct{ Prompt, Cached, Completion int }

// reading is what was found of a usage so far, by the APIs' names for its numbers. Each number has its last value in
// the answer, as later events of a stream include what earlier ones counted.
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

// readUsage finds the usage in an answer or in its end, which is one JSON object or a stream of server-sent events. It
// returns false where there is none, whatever the answer is.
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
	// Anthropic reports tokens read from the cache, or written to it, beside the input tokens, and OpenAI within them.
	out := Usage{
		Prompt:     r.value[input] + r.value[cacheRead] + r.value[cacheCreated],
		Cached:     r.value[cachedInput] + r.value[cacheRead],
		Completion: r.value[output],
	}
	return out, out.Cached <= out.Prompt
}

// isEvents says whether an answer is a stream of events. No line of JSON begins so, as its strings have no line breaks.
func isEvents(answer []byte, cut bool) bool {
	for _, field := range []string{"data:", "event:", "id:", ":"} {
		if !cut && bytes.HasPrefix(answer, []byte(field)) {
			return true
		}
	}
	return bytes.Contains(answer, []byte("\ndata:"))
}

// readEvents reads the events from the last to the first. A line whose beginning is cut off counts as an event if it
// ends with a usage.
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

// readObject reads the usage of a JSON object. It is a member of the object or, in events, of the response or message
// in it; where the beginning of that member is cut off, so is its name.
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
		case depth == 1 && inner != nil && innerOf == "": // a member is visited before the object that it is in
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

// readMembers takes the numbers of a usage, except those that a later usage has given already.
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

// mostTokens is more than any answer uses. A larger number is wrong, and would spoil the sums.
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
