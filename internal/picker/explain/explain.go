// Package explain puts a pool's decision into words: why a call goes to an endpoint. It must not know how a decision is
// made.
package explain

import (
	"math"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// Decision returns a decision as operators see it.
func Decision(d *poolstate.Decision) *livestate.Explanation {
	out := &livestate.Explanation{
		Wait: poolstate.Rounded(d.Wait.Seconds()),
		Pool: d.Pool, Model: d.Model, PromptTokens: d.PromptTokens, PromptBlocks: d.PromptBlocks,
		Candidates: make([]livestate.Candidate, 0, len(d.Ranking)),
	}
	for i := range d.Ranking {
		out.Candidates = append(out.Candidates, candidate(&d.Ranking[i]))
	}
	return out
}

func candidate(r *poolstate.Ranked) livestate.Candidate {
	c := livestate.Candidate{
		Endpoint: r.Address, Class: r.Class, AdapterState: r.AdapterState,
		CachedTokens: r.CachedTokens, UncachedTokens: r.UncachedTokens,
		QueueTokens: math.Round(r.QueueTokens), TokensPerSec: math.Round(r.Rate),
		InFlight: r.InFlight, Calls: poolstate.Rounded(r.Calls), FirstToken: poolstate.Rounded(r.Wait + r.Prefill),
		ObservedToExpected: poolstate.Known(r.ObservedToExpected),
		Cost: livestate.Cost{
			Total: poolstate.Rounded(r.Cost), Wait: poolstate.Rounded(r.Wait), Prefill: poolstate.Rounded(r.Prefill), Others: poolstate.Rounded(r.Others),
			Batch: poolstate.Rounded(r.Batch), Pickers: poolstate.Rounded(r.Pickers), Memory: poolstate.Rounded(r.Memory), Adapter: poolstate.Rounded(r.Adapter), Session: poolstate.Rounded(r.Session),
		},
	}
	if !math.IsInf(r.ReadingAge, 0) {
		age := poolstate.Rounded(r.ReadingAge)
		c.ReadingAge = &age
	}
	return c
}
