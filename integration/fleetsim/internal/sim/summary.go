package sim

import (
	"math"
	"slices"
	"time"
)

// Summary summarises the outcomes of a run.
type Summary struct {
	Calls int
	// P50, P90 and P99 are of the time to the first token, which is Never for refused calls. Mean is that of the others.
	Mean, P50, P90, P99 time.Duration
	// Cached is the cached part of all prompt tokens, 0 to 1.
	Cached float64
	// Resident is the part of the calls whose adapter was loaded, and Lost the part whose callers left without a token, 0 to
	// 1. Failed is the number of answers with an error, for each call.
	Resident, Lost, Failed float64
	// Refused is the part of the calls that the picker refused, 0 to 1.
	Refused float64
}

// Never is the time to the first token of a refused call.
const Never = time.Duration(math.MaxInt64)

// Summarize summarises outcomes. Without outcomes the Summary is zero.
func Summarize(outcomes []Outcome) Summary {
	if len(outcomes) == 0 {
		return Summary{}
	}
	s := Summary{Calls: len(outcomes)}
	times := make([]time.Duration, 0, len(outcomes))
	var sum, prompt, cached, resident, lost, failed, refused float64
	for i := range outcomes {
		o := &outcomes[i]
		if o.Refused {
			refused++
			times = append(times, Never)
			continue
		}
		times = append(times, o.TTFT())
		sum += float64(o.TTFT())
		prompt += float64(o.Prompt)
		cached += float64(o.Cached)
		failed += float64(o.Failed)
		if o.Resident {
			resident++
		}
		if o.Lost {
			lost++
		}
	}
	slices.Sort(times)
	s.Mean = time.Duration(sum / max(1, float64(len(times))-refused))
	s.P50, s.P90, s.P99 = quantile(times, 0.5), quantile(times, 0.9), quantile(times, 0.99)
	s.Cached = cached / max(1, prompt)
	n := float64(len(outcomes))
	s.Resident, s.Lost, s.Failed, s.Refused = resident/n, lost/n, failed/n, refused/n
	return s
}

// quantile returns the smallest of the ascending times that at least the part q of them does not exceed.
func quantile(times []time.Duration, q float64) time.Duration {
	return times[max(0, int(math.Ceil(q*float64(len(times))))-1)]
}

// Shares returns each server's part of the calls that were sent to servers, by number.
func Shares(outcomes []Outcome) []float64 {
	var shares []float64
	outcomes = slices.DeleteFunc(slices.Clone(outcomes), func(o Outcome) bool { return o.Refused })
	for i := range outcomes {
		for len(shares) <= outcomes[i].Server {
			shares = append(shares, 0)
		}
		shares[outcomes[i].Server] += 1 / float64(len(outcomes))
	}
	return shares
}
