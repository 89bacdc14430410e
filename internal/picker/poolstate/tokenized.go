package poolstate

import (
	"net/netip"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

// need is what a block of text needs to be in a server's cache: of the blocks of tokens that end in the prompt up to there, the
// last one.
type need struct {
	// name is 0 where no block of tokens ends before.
	name uint64
	// covered says that the block of tokens ends where the block of text does, or little before.
	covered bool
	// at is when it was learned, in seconds on the pool's clock.
	at uint32
}

const (
	// mostTokenized is for how many blocks of text their needs are known, twice: those of 134 million tokens. The index forgets what
	// servers told of, so it should be all that they have cached.
	mostTokenized = 1 << 20
	// fewTokenized is how many are known before they are forgotten for want of memory.
	fewTokenized = 1 << 10
	// tokenizedFor is after how many seconds tokens are learned again. Templates, and the adapters behind names, change.
	tokenizedFor = 600
	// mostLengths is how many lengths of servers' blocks are told apart in one pool.
	mostLengths = 4
)

// tokenized knows, for blocks of text, what they need to be in a cache. What was not asked for lately is forgotten: all that is asked
// for is in the younger map, which replaces the older one when it is full.
type tokenized struct {
	room       *fairshare.Share
	young, old map[textBlock]need
	sought     sought // working memory of a pick
}

// textBlock is a block of text, as servers with one length of blocks see it.
type textBlock struct {
	hash   uint64
	length int
}

// sought is a prompt whose needs are looked up. Few of them are, by bisection, and each of them once.
type sought struct {
	in     *tokenized
	blocks []uint64
	now    uint32
	// length is the length of the servers' blocks for which found and state are.
	length int
	found  []need
	state  []lookup // by block
}

// lookup is what is known of a need: not yet sought, not known, or in found.
type lookup uint8

const (
	unsought lookup = iota
	unknown
	found
)

// seek begins with a prompt.
func (r *tokenized) seek(blocks []uint64, now time.Duration) *sought {
	s := &r.sought
	s.in, s.blocks, s.now, s.length = r, blocks, uint32(now/time.Second), 0
	return s
}

// need returns what the prompt's i-th block needs at servers with this length of blocks.
func (s *sought) need(i, length int) (need, bool) {
	if s.length != length {
		s.length = length
		s.state = append(s.state[:0], make([]lookup, len(s.blocks))...)
		s.found = slices.Grow(s.found[:0], len(s.blocks))[:len(s.blocks)]
	}
	if s.state[i] == unsought {
		s.state[i] = unknown
		if n, known := s.in.get(textBlock{s.blocks[i], length}); known {
			s.found[i], s.state[i] = n, found
		}
	}
	return s.found[i], s.state[i] == found
}

func (r *tokenized) get(b textBlock) (n need, known bool) {
	if n, known = r.young[b]; known {
		return n, true
	}
	if n, known = r.old[b]; known {
		r.put(b, n)
	}
	return n, known
}

// put notes a need. Where there is no memory for it, the older half is forgotten, unless there is little to forget.
func (r *tokenized) put(b textBlock, n need) {
	if r.young == nil {
		r.young = map[textBlock]need{}
	}
	if _, known := r.young[b]; !known && !r.room.Take(tokenizedBytes) {
		r.room.Give(tokenizedBytes)
		if len(r.young) >= fewTokenized {
			r.age()
		}
		return
	}
	r.young[b] = n
	if len(r.young) >= mostTokenized {
		r.age()
	}
}

// age forgets what is in the older map.
func (r *tokenized) age() {
	r.room.Give(int64(tokenizedBytes * len(r.old)))
	r.young, r.old = map[textBlock]need{}, r.young
}

// drop forgets a need, so that the tokens of prompts that end with the block are learned again.
func (r *tokenized) drop(b textBlock) {
	for _, m := range []map[textBlock]need{r.young, r.old} {
		if _, known := m[b]; known {
			delete(m, b)
			r.room.Give(tokenizedBytes)
		}
	}
}

// forget gives all memory back.
func (r *tokenized) forget() {
	r.room.Give(int64(tokenizedBytes * (len(r.young) + len(r.old))))
	r.young, r.old = nil, nil
}

// Tokens are a prompt's tokens.
type Tokens interface {
	// Count is the number of tokens.
	Count() int
	// Before is how many tokens end within a part of the prompt, 0 to 1, from its head.
	Before(part float64) int
	// Names are the names of the whole blocks of so many tokens, from the prompt's head, as in kvevents.Change.
	Names(length int) []uint64
}

// Tokenizer learns prompts' tokens from the servers.
type Tokenizer interface {
	// Tokenize asks an endpoint's server for a prompt's tokens, if there is room for that, and calls then with them. It does not
	// wait for the server, and keeps neither the facts nor the body.
	Tokenize(endpoint netip.AddrPort, tenant string, facts *request.Facts, body []byte, then func(Tokens))
}

// tokenize has the tokens of a picked call's prompt learned from its first endpoint.
func (p *Pool) tokenize(c *Call, first string) {
	endpoint, _ := ParseEndpoint(first) // it is an endpoint's own text
	blocks, promptBytes := slices.Clone(c.Facts.Blocks), c.Facts.PromptBytes
	p.tokenizer.Tokenize(endpoint, p.name.Namespace, c.Facts, c.Body, func(t Tokens) {
		p.Tokenized(endpoint, blocks, promptBytes, t)
	})
}

// rests bounds the bytes of a prompt that are in no block: of each section the last ones.
const rests = 4 * request.BlockBytes

// untokenized reports whether the tokens of the prompt are to be learned: its first endpoint's server tells of its cache, and they are
// not known. Of a batch the blocks are those of the first prompt only, whose share of the bytes nobody knows.
func (p *Pool) untokenized(c *Call, n int32) bool {
	t, f := p.slots[n].told, c.Facts
	if t == nil || t.blockTokens == 0 || p.tokenizer == nil || len(c.Body) == 0 || len(f.Blocks) == 0 ||
		len(f.Blocks) < request.MaxBlocks && f.PromptBytes >= len(f.Blocks)*request.BlockBytes+rests {
		return false
	}
	prompt := p.tokenized.seek(f.Blocks, p.clock())
	need, known := prompt.need(len(f.Blocks)-1, t.blockTokens)
	return !known || prompt.now-need.at >= tokenizedFor
}

// Tokenized takes the tokens of a prompt of so many bytes, which has these blocks of text and went to an endpoint.
func (p *Pool) Tokenized(endpoint netip.AddrPort, blocks []uint64, promptBytes int, tokens Tokens) {
	if promptBytes <= 0 || tokens.Count() <= 0 {
		return
	}
	for _, length := range p.toldLengths() {
		p.setNeeds(blocks, length, needsOf(len(blocks), promptBytes, length, tokens))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n, known := p.byAddr[canonical(endpoint)]; known {
		p.confirm(n, blocks, false)
	}
}

// toldLengths returns the lengths of the blocks of the servers that tell of their caches.
func (p *Pool) toldLengths() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lengths []int
	for n := range p.slots {
		t := p.slots[n].told
		if t != nil && t.blockTokens > 0 && len(lengths) < mostLengths && !slices.Contains(lengths, t.blockTokens) {
			lengths = append(lengths, t.blockTokens)
		}
	}
	return lengths
}

// setNeeds notes the needs of blocks of text, some at a time.
func (p *Pool) setNeeds(blocks []uint64, length int, needs []need) {
	for from := 0; from < len(needs); from += toldAtOnce {
		p.mu.Lock()
		for i := from; !p.closed && i < min(from+toldAtOnce, len(needs)); i++ {
			needs[i].at = uint32(p.clock() / time.Second)
			p.tokenized.put(textBlock{blocks[i], length}, needs[i])
		}
		p.mu.Unlock()
	}
}

// slack is by how much of a block a block of text may go on behind the last whole block of tokens and still count as cached.
const slack = 0.5

// needsOf returns what each of so many blocks of a prompt's text needs. The prompt as the model gets it is taken to be the text, with
// the template's words spread evenly over it.
func needsOf(blocks, promptBytes, length int, t Tokens) []need {
	names := t.Names(length)
	before := func(blocks float64) int { return t.Before(blocks * request.BlockBytes / float64(promptBytes)) }
	needs := make([]need, blocks)
	for i := range needs {
		if whole := min(before(float64(i+1))/length, len(names)); whole > 0 {
			needs[i] = need{name: names[whole-1], covered: before(float64(i+1)-slack) <= whole*length}
		}
	}
	return needs
}
