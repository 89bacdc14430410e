// Package workload makes the traffic of the simulated fleets: calls with their arrival times, read from a trace or drawn
// from a seed. A call has its prompt as chained block hashes, and knows nothing of servers or pickers.
package workload

import (
	"cmp"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

// BlockTokens is the length of a call's block in tokens: the picker's block, at four bytes a token.
const BlockTokens = request.BlockBytes / 4

// Call is one request to a model.
type Call struct {
	// At is the arrival, from the start of the run.
	At time.Duration
	// Prompt and Output are lengths in tokens; Output is at least one.
	Prompt, Output int
	// Adapter is the requested LoRA adapter; empty is the base model.
	Adapter string
	// Session is the number of the call's conversation, where calls are divided by it; 0 is none. The picker's rule does not get it.
	Session uint64
	// Blocks are the chained hashes of the prompt's whole blocks of BlockTokens.
	Blocks []uint64
	// Stream asks for a streamed answer, whose headers come before the prompt is prefilled.
	Stream bool
	// TokenBytes is how many bytes of text a token is; 0 stands for the four that pickers assume.
	TokenBytes int
	// Tenant is the number of the caller; 0 is the only one.
	Tenant int
	// Patience is how long after its arrival the caller leaves if the answer has not ended; 0 is never.
	Patience time.Duration
}

// Tokens is the sum of the calls' prompts, in tokens.
func Tokens(calls []Call) int {
	sum := 0
	for i := range calls {
		sum += calls[i].Prompt
	}
	return sum
}

// WorkingSet is the number of tokens in all distinct whole blocks of the calls' prompts: the size of a cache that never
// evicts.
func WorkingSet(calls []Call) int {
	seen := map[uint64]struct{}{}
	for i := range calls {
		for _, b := range calls[i].Blocks {
			seen[b] = struct{}{}
		}
	}
	return len(seen) * BlockTokens
}

// Rate is the calls' mean rate over the time from the first to the last, in calls a second.
func Rate(calls []Call) float64 {
	if len(calls) < 2 {
		return 0
	}
	return float64(len(calls)) / (calls[len(calls)-1].At - calls[0].At).Seconds()
}

// Faster returns the calls with all times divided by factor; they share the prompts with the original.
func Faster(calls []Call, factor float64) []Call {
	return each(calls, func(c *Call) { c.At = time.Duration(float64(c.At) / factor) })
}

// Streamed returns the calls with streamed answers.
func Streamed(calls []Call) []Call {
	return each(calls, func(c *Call) { c.Stream = true })
}

// Of returns the calls with a text of so many bytes a token.
func Of(bytes int, calls []Call) []Call {
	return each(calls, func(c *Call) { c.TokenBytes = bytes })
}

// By returns the calls as those of a tenant.
func By(tenant int, calls []Call) []Call {
	return each(calls, func(c *Call) { c.Tenant = tenant })
}

// Merged returns all calls in the order of arrival.
func Merged(all ...[]Call) []Call {
	out := slices.Concat(all...)
	sortByTime(out)
	return out
}

// Patient returns the calls with callers who wait for so long.
func Patient(calls []Call, patience time.Duration) []Call {
	return each(calls, func(c *Call) { c.Patience = patience })
}

// Leaving returns the calls with a part of the callers, 0 to 1, who leave after exponential times with the given mean.
func Leaving(seed uint64, calls []Call, part float64, mean time.Duration) []Call {
	rnd := newSource(seed, leaveKind)
	return each(calls, func(c *Call) {
		if rnd.Float64() < part {
			c.Patience = 1 + time.Duration(rnd.ExpFloat64()*float64(mean))
		}
	})
}

// each returns copies of the calls, changed one after the other.
func each(calls []Call, change func(*Call)) []Call {
	out := slices.Clone(calls)
	for i := range out {
		change(&out[i])
	}
	return out
}

func sortByTime(calls []Call) {
	slices.SortStableFunc(calls, func(a, b Call) int { return cmp.Compare(a.At, b.At) })
}

// Spread moves each call to a random time in the quantum after its time: a trace with times rounded down to quanta has
// bunches of calls that its users never made.
func Spread(seed uint64, calls []Call, quantum time.Duration) []Call {
	rnd := newSource(seed, spreadKind)
	out := each(calls, func(c *Call) { c.At += time.Duration(rnd.Int64N(int64(quantum))) })
	sortByTime(out)
	return out
}
