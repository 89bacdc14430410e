package poolstate

import (
	"fmt"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

const (
	// recentInterval is the least time between two picks that are kept for people to see. All that any other pick pays
	// for it is a comparison; a kept one pays for the explanation of its ranking.
	recentInterval = 250 * time.Millisecond
	// recentPicks is how many are kept.
	recentPicks = 16
)

// recent are some of a pool's latest picks, the oldest overwritten first.
type recent struct {
	next  time.Duration // the moment from which on another one is kept
	made  int           // how many have been kept so far
	picks [recentPicks]recentPick
}

type recentPick struct {
	at   time.Duration
	pick livestate.Pick // its time is still to be set
}

// due says whether a pick at a moment is to be kept; those right after it then are not.
func (r *recent) due(now time.Duration) bool {
	if now < r.next {
		return false
	}
	r.next = now + recentInterval
	return true
}

// keep notes a pick of a moment.
func (r *recent) keep(at time.Duration, pick livestate.Pick) {
	r.picks[r.made%recentPicks] = recentPick{at: at, pick: pick}
	r.made++
}

// latest lists those that are kept, the newest first, as of a moment on the pool's clock and on the wall's.
func (r *recent) latest(now time.Duration, wall time.Time) []livestate.Pick {
	out := []livestate.Pick{}
	for i := r.made - 1; i >= max(0, r.made-recentPicks); i-- {
		kept := &r.picks[i%recentPicks]
		pick := kept.pick
		pick.Time = wall.Add(kept.at - now)
		out = append(out, pick)
	}
	return out
}

// describe says what a pick was and what spoke for it.
func describe(endpoint string, why *Explanation) livestate.Pick {
	out := livestate.Pick{
		Endpoint: endpoint, Model: clipped(why.Model), PromptTokens: why.PromptTokens, Candidates: len(why.Candidates),
	}
	var first, second *Candidate
	for i := range why.Candidates {
		switch c := &why.Candidates[i]; {
		case c.Endpoint == endpoint:
			first = c
		case second == nil:
			second = c
		}
	}
	out.Cost, out.CachedTokens = first.Cost.Total, first.CachedTokens
	if second == nil {
		out.Reason = "no other endpoint may serve the call"
		return out
	}
	out.Second = &second.Cost.Total
	out.Reason = reason(first, second)
	return out
}

// reason names what the first has most over the second: a class, or the term of the cost that differs most.
func reason(first, second *Candidate) string {
	if first.Class != second.Class {
		if second.Class != "" {
			return "the next best: " + second.Class
		}
		return "others allow no choice"
	}
	a, b := &first.Cost, &second.Cost
	terms := []struct {
		less float64
		text string
	}{
		{b.Wait - a.Wait, "shorter queue"},
		{b.Prefill + b.Others - a.Prefill - a.Others, prefillReason(first, second)},
		{b.Batch - a.Batch, "fewer calls in flight"},
		{b.Memory - a.Memory, "more free KV memory"},
		{b.Adapter - a.Adapter, "adapter " + first.AdapterState},
		{b.Session - a.Session, "the session's own endpoint"},
	}
	best := terms[0]
	for _, t := range terms[1:] {
		if t.less > best.less {
			best = t
		}
	}
	if best.less < 1e-3 {
		return "drawn among equals"
	}
	return fmt.Sprintf("%s (%.3g s less)", best.text, best.less)
}

func prefillReason(first, second *Candidate) string {
	if first.CachedTokens > second.CachedTokens {
		return fmt.Sprintf("holds %d of %d prompt tokens", first.CachedTokens, first.CachedTokens+first.UncachedTokens)
	}
	return "faster prefill"
}
