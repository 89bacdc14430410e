package request

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// A section is a part of the prompt that may be anywhere in the body, and has one place in the prompt. Each section is
// cut into blocks by itself, so that it need not wait for a section that the model sees before it. In the end the
// sections' hashes are chained in the model's order.
type section struct {
	seen     bool
	cut      bool // the body ends, or is no JSON any more, inside of it
	from, to int  // in text.hashes
	rest     uint64
	restLen  int
	length   int // in bytes
	texts    int // how many texts there are; more than one in a batch, or in a side of pairs
	side     bool
}

// The sections, in the order in which a model sees them. Pairs have the instruction in the place of tools, the query in
// that of the system prompt, and the document in that of messages.
const (
	toolsSection = iota
	systemSection
	messagesSection
	sectionCount

	instructionSection = toolsSection
	querySection       = systemSection
	documentSection    = messagesSection
)

// markByte never occurs in UTF-8. It ends the strings inside a structure. Before an item's key it marks whose value
// follows, so that no text passes for another role's or another part's.
const markByte = 0xFF

func (r *reader) mark(k key) {
	r.prompt.writeByte(markByte)
	r.prompt.writeByte(byte(k))
}

// shape is the JSON form of a section.
type shape uint8

const (
	noSection    shape = iota
	partsShape         // a string or a list of parts, tools
	itemsShape         // a list of messages or of other items, or the user's one message as a string
	promptShape        // a string, token ids, or a batch of them
	sideShape          // one side of pairs: a text, or a list of texts
	contentShape       // one side of pairs: a text, whose parts a list has
	dataShape          // any value, of which only its digest matters
)

// request reads all members of the body.
func (r *reader) request() {
	if !r.enter('{') {
		return
	}
	for k, ok := r.member(); ok; k, ok = r.member() {
		switch k {
		case keyModel:
			r.keep(&r.model)
		case keyCacheSalt:
			r.keep(&r.salt)
		case keyStream:
			r.stream = r.isTrue()
		case keyItemFirst:
			r.itemFirst = r.isTrue()
		case keyAdapter:
			r.keepFirst(&r.adapter)
		default:
			r.section(r.sectionOf(k))
		}
	}
	r.pair()
}

// isTrue reads a value, and says whether it is true.
func (r *reader) isTrue() bool {
	s := r.skip()
	return string(r.body[s.from:s.to]) == "true"
}

// sectionOf returns the section of the prompt that a member of the request is, and its shape.
func (r *reader) sectionOf(k key) (int, shape) {
	unknown := r.api == Unknown
	switch k {
	case keyTools:
		if unknown || r.api == ChatCompletions || r.api == Responses || r.api == Messages {
			return toolsSection, partsShape
		}
	case keySystem:
		if unknown || r.api == Messages {
			return systemSection, partsShape
		}
	case keyInstructions:
		if unknown || r.api == Responses {
			return systemSection, partsShape
		}
	case keyMessages:
		if unknown || r.api == ChatCompletions || r.api == Messages || r.api == Embeddings || r.api == Pooling {
			return messagesSection, itemsShape
		}
	case keyInput:
		embeds := unknown || r.api == Embeddings || r.api == Pooling
		switch {
		case r.api == Responses, embeds && r.listsObjects():
			return messagesSection, itemsShape
		case embeds:
			return messagesSection, promptShape
		}
	case keyPrompt:
		if unknown || r.api == Completions {
			return messagesSection, promptShape
		}
	case keyTextInput, keyInputs:
		if unknown {
			return messagesSection, promptShape
		}
	case keyText, keyTokenIDs:
		if unknown || r.api == Pooling {
			return messagesSection, promptShape
		}
	case keyData:
		if r.api == Pooling {
			return messagesSection, dataShape
		}
	default:
		if r.api == Pairs { // other calls have documents too, beside their messages
			return sideOf(k)
		}
	}
	return 0, noSection
}

// listsObjects says whether the next value is a list whose first element is an object.
func (r *reader) listsObjects() bool { return r.listed() == '{' }

// listsTokenIDs says whether the next value is a list whose first element is a number.
func (r *reader) listsTokenIDs() bool {
	c := r.listed()
	return c >= '0' && c <= '9'
}

// listed returns the first byte of the first element, if the next value is a list that has one; else another byte.
func (r *reader) listed() byte {
	if r.peek() != '[' {
		return 0
	}
	at := r.at
	r.at++
	c := r.peek()
	r.at, r.broken = at, false
	return c
}

func (r *reader) section(i int, how shape) {
	s := &r.sections[i]
	if how == noSection || s.seen {
		r.skip()
		return
	}
	*s = section{from: len(r.prompt.hashes)}
	r.prompt.limit = s.from + MaxBlocks
	r.prompt.blocks = 0
	switch how {
	case partsShape:
		r.items(partDepth)
	case itemsShape:
		r.messages()
	case promptShape:
		r.prompts(s)
	case sideShape, contentShape:
		s.side = true
		r.side(s, how)
	case dataShape:
		r.data()
	}
	if s.texts == 0 || r.prompt.len() > 0 {
		r.endText(s)
	}
	r.promptBytes += s.length
	s.seen = s.length > 0
	s.cut = r.broken
	s.to = len(r.prompt.hashes)
}

// endText ends a text of the section. The first one gives the section's blocks; all count for its length.
func (r *reader) endText(s *section) {
	s.length += r.prompt.len()
	rest, restLen := r.prompt.rest()
	if s.texts == 0 {
		s.rest, s.restLen = rest, restLen
	}
	s.texts++
	r.prompt.limit, r.prompt.blocks = 0, 0
}

// chain puts the sections' hashes in the model's order and makes each stand for all before it. The last bytes of a
// section that fill no block go into the hash of the next section's first block. A section that is cut is the last, as
// the whole body has other blocks behind it.
func (r *reader) chain() []uint64 {
	hashes := r.prompt.hashes
	seed := r.prompt.seed
	h := joinNames.with(seed, r.modelDigest(), r.digestOf(r.salt))
	done := 0
	for i := range r.sections {
		s := &r.sections[i]
		if !s.seen {
			continue
		}
		r.moveUp(hashes, done, s)
		h = joinSection.with(seed, h, uint64(i))
		end := done + s.to - s.from
		for j := done; j < end; j++ {
			h = joinBlock.with(seed, h, hashes[j])
			hashes[j] = h
		}
		done = end
		if s.cut {
			break
		}
		if s.restLen > 0 {
			h = joinRest.with(seed, h, s.rest)
		}
	}
	return hashes[:min(done, MaxBlocks)]
}

// moveUp moves a section's hashes to place to, ahead of those of sections that come later in the prompt.
func (r *reader) moveUp(hashes []uint64, to int, s *section) {
	if s.from == s.to || s.from == to {
		return
	}
	slices.Reverse(hashes[to:s.from])
	slices.Reverse(hashes[s.from:s.to])
	slices.Reverse(hashes[to:s.to])
	for i := range r.sections {
		if o := &r.sections[i]; o != s && o.from >= to && o.from < s.from {
			o.from += s.to - s.from
			o.to += s.to - s.from
		}
	}
	s.from, s.to = to, to+s.to-s.from
}

// Items nest: messages hold parts, and tool results hold parts again. Below maxDepth, items are hashed as their JSON.
const (
	messageDepth = 0
	partDepth    = 1
	maxDepth     = 5
)

// messages reads the messages of a chat, or the input of a response. A string is one message of the user.
func (r *reader) messages() {
	if r.peek() == '"' {
		r.mark(keyRole)
		r.prompt.write([]byte("user"))
		r.mark(keyContent)
		r.str(&r.prompt)
		return
	}
	r.items(messageDepth)
}

// items reads a content, or a list of messages, tools or calls. A string is the same as one text part.
func (r *reader) items(depth int) {
	switch c := r.peek(); {
	case c == '"':
		r.str(&r.prompt)
	case c == '{' && depth < maxDepth:
		r.item(depth, true)
	case c == '[' && depth < maxDepth:
		r.at++
		for first := true; r.element(); first = false {
			if r.peek() == '{' {
				r.item(depth, first)
			} else {
				r.mark(keyOther)
				r.tokens(&r.prompt)
			}
		}
	case c == 'n': // null is the same as a missing value
		r.skip()
	default:
		r.tokens(&r.prompt)
	}
}

// after lists, by key, the keys whose values must be in the text before that key's value may follow at once, so that
// the text does not depend on the order in the body. These are the keys that the model sees before it and that occur
// beside it. All other values wait for the end of their item, and are then read a second time.
var after = [2][itemKeys]uint32{
	messageDepth: {
		keyContent: 1 << keyRole,
	},
	partDepth: {
		keyDescription: 1 << keyName,
		keyParameters:  1<<keyName | 1<<keyDescription,
		keyArguments:   1 << keyName,
		keyInput:       1 << keyName,
	},
}

// atOnce are the keys whose values always enter the text at once. No API has two keys of one depth side by side; if a
// body does, their order counts.
var atOnce = [2]uint32{
	messageDepth: 1<<keyRole | 1<<keyOutput,
	partDepth:    1<<keyText | 1<<keyThinking | 1<<keyContent | 1<<keyFunction | 1<<keyName,
}

// item reads a message, a content part, a tool or a call: the members that a model sees. Where the body is cut before
// the item's end, the waiting values are left out.
func (r *reader) item(depth int, first bool) {
	r.at++
	level := min(depth, partDepth)
	var seen, done uint32
	var waiting [itemKeys]span
	for k, ok := r.member(); ok; k, ok = r.member() {
		bit := uint32(1) << k
		if k == keyOther || k >= itemKeys || seen&bit != 0 {
			r.skip()
			continue
		}
		seen |= bit
		need := after[level][k]
		if atOnce[level]&bit != 0 || need != 0 && done&need == need {
			r.value(k, depth, first)
			done |= bit
		} else {
			waiting[k] = r.skip()
		}
	}
	if r.broken {
		return
	}
	for k, s := range waiting {
		if s.to > 0 {
			r.again(s, key(k), depth, first)
		}
	}
}

// again reads a value that waited. It sees no byte beyond the value. So values that wait inside waiting values are read
// at most maxDepth times, and malformed values end where they ended the first time.
func (r *reader) again(s span, k key, depth int, first bool) {
	at, body := r.at, r.body
	r.at, r.body = s.from, body[:s.to]
	r.value(k, depth, first)
	r.at, r.body, r.broken = at, body, false
}

// value hashes one member of an item.
func (r *reader) value(k key, depth int, first bool) {
	if r.peek() == 'n' { // null is the same as a missing value
		r.skip()
		return
	}
	if k == keyMedium {
		r.medium()
		return
	}
	if k != keyText || !first {
		r.mark(k)
	}
	switch k {
	case keyContent, keyOutput, keyFunction, keyToolCalls:
		r.items(depth + 1)
	default:
		if r.peek() == '"' {
			r.str(&r.prompt)
		} else {
			r.tokens(&r.prompt)
		}
	}
}

// medium reads an image, a recording, a video or a file, given by its URL, its id or its bytes in base64, and writes
// MediaBytes bytes made of its digest. A medium that is cut by the body's end is left out.
func (r *reader) medium() {
	switch r.peek() {
	case '{':
		r.at++
		found := false
		for k, ok := r.member(); ok; k, ok = r.member() {
			if (k == keyURL || k == keyData || k == keyMedium) && !found && r.peek() == '"' {
				r.str(&r.digest)
				found = true
			} else {
				r.skip()
			}
		}
	case '"':
		r.str(&r.digest)
	default:
		r.tokens(&r.digest)
	}
	r.standIn()
}

// data reads a value of any form, which a plugin of the server makes the model's input of, as a medium.
func (r *reader) data() {
	r.tokens(&r.digest)
	r.standIn()
}

// standIn writes MediaBytes bytes made of the digest, in the place of what was digested.
func (r *reader) standIn() {
	sum := r.digest.sum()
	if r.broken {
		return
	}
	r.mark(keyMedium)
	var block [BlockBytes]byte
	for i := 0; i < len(block); i += 8 {
		binary.LittleEndian.PutUint64(block[i:], sum)
	}
	for range MediaBytes / BlockBytes {
		r.prompt.write(block[:])
	}
}

// prompts reads the prompt of completions and the input of embeddings: a string, token ids, or a list of strings or of
// lists of ids. Such a list is a batch of prompts, whose first one gives the blocks.
func (r *reader) prompts(s *section) {
	if r.peek() == '"' {
		r.str(&r.prompt)
		return
	}
	if !r.enter('[') {
		r.skip()
		return
	}
	for r.element() {
		switch r.peek() {
		case '"':
			r.str(&r.prompt)
		case '[':
			r.at++
			r.tokenIDs()
		default:
			r.tokenID()
			continue
		}
		r.endText(s)
	}
}

// tokenIDs reads the rest of a list of token ids.
func (r *reader) tokenIDs() {
	for r.element() {
		r.tokenID()
	}
}

// tokenID hashes one id as four bytes, so that a block is 64 tokens here too. A value that is no number is skipped.
func (r *reader) tokenID() {
	if c := r.peek(); c < '0' || c > '9' {
		r.skip()
		return
	}
	var id uint32
	for _, c := range r.scalar() {
		id = id*10 + uint32(c-'0')
	}
	if r.broken {
		return
	}
	var b [BytesPerToken]byte
	binary.LittleEndian.PutUint32(b[:], id)
	r.prompt.write(b[:])
}

// keep notes where a string lies; a value of another kind counts as missing.
func (r *reader) keep(s *span) {
	isString := r.peek() == '"'
	at := r.skip()
	if r.broken {
		return
	}
	*s = span{}
	if isString {
		*s = at
	}
}

// keepFirst notes where a string lies or, of a list, its first string. An empty one counts as missing.
func (r *reader) keepFirst(s *span) {
	var first span
	if r.enter('[') {
		for r.element() {
			if first.to == 0 {
				r.keep(&first)
			} else {
				r.skip()
			}
		}
	} else {
		r.keep(&first)
	}
	if r.broken {
		return
	}
	*s = span{}
	if first.to-first.from > len(`""`) {
		*s = first
	}
}

// digestOf returns the digest of a string of the body.
func (r *reader) digestOf(s span) uint64 {
	if s.to > 0 {
		r.at = s.from
		r.str(&r.digest)
	}
	return r.digest.sum()
}

// named returns where the body names the adapter or, without one, the model.
func (r *reader) named() span {
	if r.adapter.to > 0 {
		return r.adapter
	}
	return r.model
}

// modelDigest returns the digest of the model's whole name.
func (r *reader) modelDigest() uint64 {
	at := r.named()
	if at.to == 0 {
		r.digest.write([]byte(r.modelInPath))
		return r.digest.sum()
	}
	return r.digestOf(at)
}

// modelName returns the model's name, or last if it is the same.
func (r *reader) modelName(last string) string {
	name := []byte(r.modelInPath)
	if at := r.named(); at.to > 0 {
		name = r.body[at.from+1 : at.to-1]
		name = name[:min(len(name), MaxModelBytes*len(`\u0000`))] // escapes may take six bytes for one
		if nextQuote(name) < len(name) {
			name = unescaped(name)
		}
	}
	return nameOf(name, last)
}

// nameOf returns a model's name, or last if it is the same.
func nameOf(name []byte, last string) string {
	name = clipped(name, MaxModelBytes)
	if string(name) == last {
		return last
	}
	return string(name)
}

// clipped returns the longest head of p of at most limit bytes that ends with a whole character.
func clipped(p []byte, limit int) []byte {
	if len(p) <= limit {
		return p
	}
	for limit > 0 && !utf8.RuneStart(p[limit]) {
		limit--
	}
	return p[:limit]
}
