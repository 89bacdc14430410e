package explain

import (
	"fmt"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// Pick returns a pick as operators see it: the chosen endpoint, and the main reason for it.
func Pick(d *poolstate.Decision, at time.Time) livestate.Pick {
	out := livestate.Pick{
		Time: at, Endpoint: d.Chosen, Model: d.Model, PromptTokens: d.PromptTokens, Candidates: d.Candidates,
	}
	var first, second *livestate.Candidate
	for i := range d.Ranking {
		c := candidate(&d.Ranking[i])
		switch {
		case c.Endpoint == d.Chosen:
			first = &c
		case second == nil:
			second = &c
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

// reason names the first's greatest advantage over the second: a class, or the term of the cost that differs most.
func reason(first, second *livestate.Candidate) string {
	if first.Class != second.Class { // the chosen endpoint's class is the lowest, so the second has one
		return "the next best: " + second.Class
	}
	a, b := &first.Cost, &second.Cost
	terms := []struct {
		less float64
		text string
	}{
		{b.Wait - a.Wait, "shorter queue"},
		{b.Prefill + b.Others - a.Prefill - a.Others, prefillReason(first, second)},
		{b.Batch - a.Batch, "fewer calls in flight"},
		{b.Pickers - a.Pickers, "this picker's own endpoint"},
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

func prefillReason(first, second *livestate.Candidate) string {
	if first.CachedTokens > second.CachedTokens {
		return fmt.Sprintf("holds %d of %d prompt tokens", first.CachedTokens, first.CachedTokens+first.UncachedTokens)
	}
	return "faster prefill"
}
