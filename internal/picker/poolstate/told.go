package poolstate

import (
	"net/netip"
	"sort"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/kvevents"
)

// A server that tells of its cache by events knows better than the index what it has evicted, and what others have brought. It
// names blocks of tokens, and the index blocks of text. So the tokens of prompts are learned after their picks (Tokenized), and
// tell which block of tokens must be there for a block of text to be. A pick takes, for each endpoint, what the server told or
// what the index has, whichever is more. Once the server has told of all of a prompt, the index forgets it (confirm). So the
// index holds only what no event has shown: prompts that wait to be computed, and those whose tokens are not known.

// told is what one endpoint's server has told of its cache.
type told struct {
	names map[uint64]struct{} // of its blocks, by package tokenblocks
	// most is how many names there were since the map was made. A map keeps the memory that it once had.
	most int
	// blockTokens is the length of its blocks, by its events or, before the first one, by its metrics; 0 where neither says it.
	blockTokens int
}

const (
	// maxTold bounds the memory of what servers told and of the tokens of prompts, in bytes, of all pools together.
	maxTold = 256 << 20
	// toldBytes is the memory of a name, and tokenizedBytes that of a block of text whose tokens are known, in Go's maps when they
	// have just grown. TestBytesOfNames measures them.
	toldBytes      = 38
	tokenizedBytes = 72
	// toldAtOnce is how many names are taken with the mutex held: some 20 µs.
	toldAtOnce = 256
)

// CacheChanged takes what an endpoint's server tells of its cache. It ignores endpoints that are not in the pool, and all where
// the pool's prefixes are not to come from events.
func (p *Pool) CacheChanged(endpoint netip.AddrPort, c kvevents.Change) {
	p.change(endpoint, func(t *told) { t.begin(c, p.toldRoom) })
	for from := 0; from < len(c.Removed); from += toldAtOnce {
		p.change(endpoint, func(t *told) { t.remove(c.Removed[from:min(from+toldAtOnce, len(c.Removed))]) })
	}
	for from := 0; from < len(c.Stored); from += toldAtOnce {
		p.change(endpoint, func(t *told) { t.add(c.Stored[from:min(from+toldAtOnce, len(c.Stored))], p.toldRoom) })
	}
}

// change changes what an endpoint's server has told, with the mutex held.
func (p *Pool) change(endpoint netip.AddrPort, by func(*told)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, known := p.byAddr[canonical(endpoint)]
	if !known || p.closed || !p.slots[n].member || !p.settings.Load().PrefixEvents {
		return
	}
	if p.slots[n].told == nil {
		p.slots[n].told = &told{names: map[uint64]struct{}{}, blockTokens: p.slots[n].blockTokens}
		p.tellers++
	}
	by(p.slots[n].told)
}

func (t *told) begin(c kvevents.Change, room *fairshare.Share) {
	if c.Cleared {
		t.forget(room)
	}
	if c.BlockTokens > 0 {
		t.blockTokens = c.BlockTokens
	}
}

func (t *told) remove(names []uint64) {
	for _, name := range names {
		delete(t.names, name)
	}
}

// add adds names, as far as there is room. What a server has and the picker does not know is computed elsewhere again, and no more.
func (t *told) add(names []uint64, room *fairshare.Share) {
	for _, name := range names {
		if _, known := t.names[name]; known {
			continue
		}
		if len(t.names) == t.most {
			if !room.Take(toldBytes) {
				room.Give(toldBytes)
				return
			}
			t.most++
		}
		t.names[name] = struct{}{}
	}
}

// forget drops all names.
func (t *told) forget(room *fairshare.Share) {
	room.Give(int64(toldBytes * t.most))
	t.names, t.most = map[uint64]struct{}{}, 0
}

// depth returns how many of a prompt's blocks, from its head, are in the server's cache. A server evicts the last blocks of a prompt
// first, so what it has of the prompt ends at one place. Of the blocks of text behind the last block of tokens that is there, only one
// counts that goes on little behind it.
func (t *told) depth(prompt *sought) int {
	if t.blockTokens == 0 {
		return 0
	}
	n := len(prompt.blocks)
	head := sort.Search(n, func(i int) bool { need, known := prompt.need(i, t.blockTokens); return !known || need.name != 0 })
	has := head + sort.Search(n-head, func(i int) bool { return !t.has(prompt, head+i) })
	if has == head || !t.has(prompt, head) {
		return 0
	}
	last, _ := prompt.need(has-1, t.blockTokens)
	first := head + sort.Search(has-head, func(i int) bool {
		need, known := prompt.need(head+i, t.blockTokens)
		return known && need.name == last.name
	})
	if need, _ := prompt.need(first, t.blockTokens); need.covered {
		first++
	}
	return first
}

// has reports whether the cache has what a block of a prompt needs.
func (t *told) has(prompt *sought, i int) bool {
	need, known := prompt.need(i, t.blockTokens)
	_, has := t.names[need.name]
	return known && has
}

// tokens is how many tokens the cache has; -1 where that is not known.
func (t *told) tokens() int {
	if t == nil {
		return -1
	}
	return len(t.names) * t.blockTokens
}

// untell drops what an endpoint's server has told.
func (p *Pool) untell(n int32) {
	if t := p.slots[n].told; t != nil {
		t.forget(p.toldRoom)
		p.slots[n].told = nil
		p.tellers--
	}
}

// addTold raises what the endpoints have of a prompt to what their servers told.
func (p *Pool) addTold(cached []int32, blocks []uint64) {
	prompt := p.tokenized.seek(blocks, p.clock())
	for n := range p.slots {
		if t := p.slots[n].told; t != nil {
			cached[n] = max(cached[n], int32(t.depth(prompt)))
		}
	}
}

// toldOf returns how many of a prompt's blocks an endpoint's server has told of.
func (p *Pool) toldOf(n int32, blocks []uint64) int {
	t := p.slots[n].told
	if t == nil || len(blocks) == 0 {
		return 0
	}
	return t.depth(p.tokenized.seek(blocks, p.clock()))
}

// cachedBy returns how many of a prompt's blocks one endpoint has.
func (p *Pool) cachedBy(n int32, blocks []uint64) int {
	return max(p.index.Held(int(n), blocks), p.toldOf(n, blocks))
}

// confirm lets the index forget a prompt of which the endpoint's server has told, and reports whether it has. computed says that the
// endpoint has computed the prompt. Where its tokens are known and the server does not have them, they are not those of this prompt, or
// no more: they are learned again.
func (p *Pool) confirm(n int32, blocks []uint64, computed bool) bool {
	t := p.slots[n].told
	if t == nil || len(blocks) == 0 {
		return false
	}
	prompt, last := p.tokenized.seek(blocks, p.clock()), len(blocks)-1
	switch need, known := prompt.need(last, t.blockTokens); {
	case !known || need.name == 0:
		return false
	case !t.has(prompt, last):
		if computed {
			p.tokenized.drop(textBlock{blocks[last], t.blockTokens})
		}
		return false
	}
	p.withdraw(n, blocks, 0)
	return true
}

// close gives back the memory of a pool that is removed.
func (p *Pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := range p.slots {
		p.untell(int32(n))
	}
	p.tokenized.forget()
	for from := range p.theirs {
		p.giveUp(p.lose(from))
	}
	for p.waits.open = true; p.waits.line.Len() > 0; {
		p.letSomeGo(p.clock())
	}
	p.closed = true
	p.index.Close()
}
