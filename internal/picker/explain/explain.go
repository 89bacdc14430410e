// Package explain puts a decision of a pool into words: why a call went, or would go, where it does. How a decision is made
// may not enter.
package explain

import (
	"math"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// Decision is what operators are shown of a decision.
func Decision(d *poolstate.Decision) *livestate.Explanation {
	out := &livestate.Explanation{
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
		InFlight: r.InFlight, Calls: rounded(r.Calls), FirstToken: rounded(r.Wait + r.Prefill),
		Cost: livestate.Cost{
			Total: rounded(r.Cost), Wait: rounded(r.Wait), Prefill: rounded(r.Prefill), Others: rounded(r.Others),
			Batch: rounded(r.Batch), Memory: rounded(r.Memory), Adapter: rounded(r.Adapter), Session: rounded(r.Session),
		},
	}
	if !math.IsInf(r.ReadingAge, 0) {
		age := rounded(r.ReadingAge)
		c.ReadingAge = &age
	}
	return c
}

// rounded leaves microseconds of seconds.
func rounded(v float64) float64 { return math.Round(v*1e6) / 1e6 }
