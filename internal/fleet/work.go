package fleet

import (
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/selection"
)

// All that a call does to a pool is one of three events: it is reserved, it moves, it is released. Each takes values
// and a time, and nothing of a stream. Endpoints are the pool's own numbers and times are of this process's clock, so
// that an event means nothing to another picker. The pool's mutex is held.

// hold is what a pool keeps for one call until it is released.
type hold struct {
	claim  selection.Claim
	prompt int // tokens
	blocks []uint64
	// kept is how many of the blocks the endpoint holds without this call; in the end, how many it came to hold.
	kept int
	// withdrawn is the endpoint's count of withdrawals when the blocks were inserted.
	withdrawn uint64
}

// reserve charges the choice with the call. What it will have cached counts from now on, so that the next call with
// the same prompt finds it; it is taken back if it does not come to be.
func (p *Pool) reserve(call *selection.Call, choice *selection.Choice, now time.Duration) hold {
	h := hold{
		claim:  p.view.Reserve(choice.Endpoint, now, call, choice.Uncached),
		prompt: choice.Cached + choice.Uncached,
		blocks: call.Facts.Blocks,
	}
	p.insert(&h)
	return h
}

// move takes the call to the endpoint that serves it, which may have less of the prompt cached than the first choice, or
// more.
func (p *Pool) move(h *hold, to int32, now time.Duration) {
	from, before := h.claim.Endpoint, *h
	p.index.Match(h.blocks, p.view.Cached)
	uncached := selection.Uncached(h.prompt, p.view.Cached[to])
	p.view.Move(&h.claim, to, uncached, now)
	p.withdraw(from, &before)
	p.insert(h)
	p.reuse(from)
}

// release ends the call.
func (p *Pool) release(h *hold, outcome Outcome, now time.Duration) {
	n := h.claim.Endpoint
	switch lacks := p.view.Release(&h.claim, outcome, now); {
	case lacks > 0:
		h.kept = max(h.kept, int((float64(h.prompt)-lacks)/selection.BlockTokens))
		p.withdraw(n, h)
	case h.withdrawn != p.slots[n].withdrawn:
		p.restore(h, outcome, now)
	}
	p.reuse(n)
}

// restore notes again what a call's endpoint holds, some of which may have gone with what was withdrawn since the call
// came. What it found noted then and is gone, the endpoint had to prefill for it, if there was time: from the prompt's
// head, unless more of it is still noted.
func (p *Pool) restore(h *hold, outcome Outcome, now time.Duration) {
	p.index.Match(h.blocks, p.view.Cached)
	if held := int(p.view.Cached[h.claim.Endpoint]); outcome != Answered && held < h.kept {
		could := int(p.view.Affords(&h.claim, now) / selection.BlockTokens)
		h.blocks = h.blocks[:min(len(h.blocks), max(held, could))]
	}
	p.insert(h)
}

// insert notes in the index that the call's endpoint holds its prompt. The view must have what is cached of it.
func (p *Pool) insert(h *hold) {
	n := h.claim.Endpoint
	h.kept = int(p.view.Cached[n])
	h.withdrawn = p.slots[n].withdrawn
	if p.slots[n].member && len(h.blocks) > 0 {
		p.index.Insert(int(n), h.blocks)
	}
}

// withdraw takes the prompt of a call out of the index again, but for the blocks that endpoint n kept.
func (p *Pool) withdraw(n int32, h *hold) {
	p.slots[n].withdrawn++
	if len(h.blocks) > 0 {
		p.index.Withdraw(int(n), h.blocks, h.kept)
	}
}
