package poolstate

import (
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// stored follows what an endpoint's server keeps in its cache beside the prompts that the picker sent there: answers, and the
// prompts of other callers. It evicts prompts that the index would hold. The server counts the tokens that it computes; those
// that no call of the picker's own brought take room in the index. All numbers are in tokens.
type stored struct {
	// read says that the server was read. The numbers are its counters at the last reading, of prompts the highest so far.
	read                            bool
	prompts, answers, firstAnswered int64
	// brought is what the own calls in flight are expected to store, and ended the same of those that ended since the last
	// reading.
	brought, ended int
	// foreign is negative while the server still has to compute what own calls brought, down to that. other is what else was stored,
	// as far as the index does not have it.
	foreign, other int
}

// mostBlockTokens bounds what a page may say of the length of a block.
const mostBlockTokens = 1 << 16

// certainty is the part of the others' prompts that takes room. When exactly a block of theirs was last used is not known, and to take
// a cached prompt for evicted is the worse mistake: it is prefilled again elsewhere. In simulated fleets that were not overloaded, more
// was a little better, and in overload less.
const certainty = 0.5

// bring notes that the endpoint of a call is expected to store so many tokens for the call's prompt.
func (p *Pool) bring(r *Reservation, tokens int) {
	s := &p.slots[r.claim.Endpoint].stored
	r.brings = tokens
	s.brought += tokens
	s.foreign -= tokens
}

// takeAway notes that a call ends at its endpoint, or moves to another, and whether the endpoint has computed its prompt.
func (p *Pool) takeAway(r *Reservation, computed bool) {
	s := &p.slots[r.claim.Endpoint].stored
	s.brought -= r.brings
	if computed {
		s.ended += r.brings
	} else {
		s.foreign += r.brings
	}
	r.brings = 0
}

// lost notes that a call ended since the last reading without so many of the tokens that it was expected to store.
func (s *stored) lost(tokens int) {
	tokens = min(tokens, s.ended)
	s.ended -= tokens
	s.foreign += tokens
}

// emptied notes that the server restarted. What was brought to the process before is lost, and its calls end by themselves.
func (s *stored) emptied() { *s = stored{brought: s.brought, foreign: -s.brought} }

// occupy takes a reading's counters of stored tokens. shared says that others may call the endpoint. Where nobody does, prompts
// that differ from what was expected were evicted and computed again, and are in the index.
func (p *Pool) occupy(n int32, r *modelmetrics.Reading, shared bool) {
	s := &p.slots[n].stored
	before := *s
	s.read, s.answers, s.firstAnswered = true, r.GeneratedTokens, r.FirstTokens
	s.prompts = max(s.prompts, prefilled(r)+r.TransferredTokens) // it may drop, as hits count before prompts
	bound := -s.brought - s.ended
	s.ended = 0
	if !before.read {
		s.foreign = bound
		return
	}
	ratio := p.choice.TokenRatio(n)
	tokens := func(counted int64) int { return int(float64(min(counted, picksettings.MostTokens)) / ratio) }
	if s.foreign += tokens(s.prompts - before.prompts); !shared || s.foreign < bound {
		s.foreign = bound
	}
	others := max(0, s.foreign)
	s.foreign -= others
	// The last block of a call is not whole, and is not kept.
	block := min(r.BlockTokens, mostBlockTokens)
	calls := max(0, s.firstAnswered-before.firstAnswered)
	s.other += tokens(max(0, s.answers-before.answers)) - tokens(min(calls, picksettings.MostTokens)*block/2)
	s.other = max(s.other, -tokens(block*int64(min(max(1, r.Running), mostServed)))) + int(float64(others)*certainty)
	if blocks := s.other / selection.BlockTokens; blocks > 0 {
		s.other -= blocks * selection.BlockTokens
		p.index.Occupy(int(n), blocks)
	}
}
