package poolstate

import (
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// A call changes a pool's state by three events: it is reserved, it moves, it is released. Each event takes values and
// a time, and nothing of a stream, so that calls of other pickers change the state by the same functions (followed.go).
// The pool's mutex is held.

// reserve adds the call to the chosen endpoint, which holds so many of its blocks. The call's blocks count as cached at
// once, so that the next call with the same prompt finds them. They are taken back if the endpoint does not prefill them.
func (p *Pool) reserve(r *Reservation, id uint64, call *selection.Call, choice *selection.Choice, held int, now time.Duration) {
	*r = Reservation{
		pool:         p,
		PromptTokens: choice.Cached + choice.Uncached,
		CachedTokens: choice.Cached,
		claim:        p.choice.Reserve(choice.Endpoint, now, call, choice.Uncached),
		blocks:       call.Facts.Blocks,
		id:           id,
	}
	p.insert(r, held)
	p.bring(r, choice.Uncached)
}

// move moves the call to the endpoint that serves it, which may have less of the prompt cached than the first choice,
// or more.
func (p *Pool) move(r *Reservation, to int32, now time.Duration) {
	from, kept := r.claim.Endpoint, r.kept
	uncached := selection.Uncached(r.PromptTokens, int32(p.cachedBy(to, r.blocks)))
	p.takeAway(r, false)
	p.choice.Move(&r.claim, to, uncached, now)
	p.withdraw(from, r.blocks, kept)
	p.insert(r, p.index.Held(int(to), r.blocks))
	p.bring(r, uncached)
	p.reuse(from)
}

// release ends the call. It reports whether its endpoint is taken to have prefilled the prompt, and how many of its blocks
// the endpoint may lack all the same, if the call was broken off.
func (p *Pool) release(r *Reservation, outcome Outcome, now time.Duration) (prefilled bool, unsure int) {
	n, kept := r.claim.Endpoint, r.kept
	computed := p.choice.Computed(&r.claim, now) / selection.BlockTokens
	prefilled = p.choice.Release(&r.claim, outcome, now)
	p.depart(r, prefilled)
	sure := len(r.blocks)
	if outcome == Ended {
		sure = min(sure, max(p.doubts.found(n, r.blocks, min(kept, r.kept)), p.toldOf(n, r.blocks))+computed)
	}
	p.keep(r, prefilled, sure, now)
	return prefilled, len(r.blocks) - sure
}

// depart notes that the call is no longer at its endpoint, and that its prompt stays there if it was prefilled.
func (p *Pool) depart(r *Reservation, prefilled bool) {
	n := r.claim.Endpoint
	p.takeAway(r, prefilled)
	if prefilled && r.withdrawn != p.slots[n].withdrawn {
		p.insert(r, p.index.Held(int(n), r.blocks))
	}
}

// keep notes what its endpoint has of the prompt of a call that ended.
func (p *Pool) keep(r *Reservation, prefilled bool, sure int, now time.Duration) {
	n := r.claim.Endpoint
	switch {
	case prefilled && p.confirm(n, r.blocks, true):
		p.doubts.confirm(n, r.blocks)
	case !prefilled:
		p.withdraw(n, r.blocks, r.kept)
	case sure < len(r.blocks):
		p.doubt(r, sure, now)
	default:
		p.doubts.confirm(n, r.blocks)
	}
	p.reuse(n)
}

// insert adds all of the call's blocks to its endpoint in the index. held is how many the endpoint had before.
func (p *Pool) insert(r *Reservation, held int) {
	n := r.claim.Endpoint
	r.kept = held
	r.withdrawn = p.slots[n].withdrawn
	if p.slots[n].member && len(r.blocks) > 0 {
		p.index.Insert(int(n), r.blocks)
	}
}

// withdraw removes the blocks of a call that endpoint n did not prefill from the index, except the first kept.
func (p *Pool) withdraw(n int32, blocks []uint64, kept int) {
	p.slots[n].withdrawn++
	if len(blocks) > 0 {
		p.index.Withdraw(int(n), blocks, kept)
	}
}
