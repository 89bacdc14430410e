package poolstate

import (
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// All that a call does to a pool is one of three events: it is reserved, it moves, it is released. Each takes values
// and a time, and nothing of a stream. Endpoints are the pool's own numbers and times are of this process's clock, so
// that an event means nothing to another picker. The pool's mutex is held.

// hold is what a pool keeps for one call until it is released.
type hold struct {
	claim  selection.Claim
	prompt int // tokens
	blocks []uint64
	// kept is how many of the blocks the endpoint held before.
	kept int
	// withdrawn is the endpoint's count of withdrawals when the blocks were inserted.
	withdrawn uint64
	// id names the call to the proxy.
	id uint64
}

// reserve charges the choice with the call. What it will have cached counts from now on, so that the next call with
// the same prompt finds it; it is taken back if it does not come to be.
func (p *Pool) reserve(call *selection.Call, choice *selection.Choice, now time.Duration) hold {
	h := hold{
		claim:  p.view.Reserve(choice.Endpoint, now, call, choice.Uncached),
		prompt: choice.Cached + choice.Uncached,
		blocks: call.Facts.Blocks,
		id:     p.nextID(),
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
	n, kept := h.claim.Endpoint, h.kept
	computed := p.view.Computed(&h.claim, now) / selection.BlockTokens
	prefilled := p.view.Release(&h.claim, outcome, now)
	if prefilled && h.withdrawn != p.slots[n].withdrawn {
		p.index.Match(h.blocks, p.view.Cached)
		p.insert(h)
	}
	sure := len(h.blocks)
	if outcome == Ended {
		sure = min(sure, p.doubts.found(n, h.blocks, min(kept, h.kept))+computed)
	}
	switch {
	case !prefilled:
		p.withdraw(n, h)
	case sure < len(h.blocks):
		p.doubt(n, h, sure, now)
	default:
		p.doubts.confirm(n, h.blocks)
	}
	p.reuse(n)
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

// withdraw takes the prompt of a call that endpoint n did not prefill out of the index again.
func (p *Pool) withdraw(n int32, h *hold) {
	p.slots[n].withdrawn++
	if len(h.blocks) > 0 {
		p.index.Withdraw(int(n), h.blocks, h.kept)
	}
}
