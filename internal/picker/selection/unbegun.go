package selection

import "math"

// unbegun follows how many calls of an endpoint have no first token, whoever sent them. A server with several callers does not
// tell which calls are whose, and takes calls into its batch long before it has prefilled them. But each call that came has
// ended, or is there: the calls that ended and those that are there, less the first tokens, are those without one. The
// difference also has a part that does not change: what the server counted before the first reading. And it shrinks by each
// caller who leaves after the first token, as vLLM does not count that as an end. So its least value of late stands for no
// call without a first token. Calls that wait never count for less, also where some always do.
type unbegun struct {
	last  int64 // first tokens at the last reading
	since float64
	least [2]int64 // of the last two periods, the current one first
}

// leastFor is how long the least value counts, in seconds: one to two periods of this length.
const leastFor = 15

// see takes a reading that was taken at the time at. It returns how many calls wait or are prefilled, deferred ones left out;
// ok is false where the server does not count what that takes.
func (u *unbegun) see(at float64, r *Reading) (calls int, ok bool) {
	if r.FirstTokens <= 0 || r.Ended <= 0 {
		return 0, false
	}
	there := r.Running + r.Waiting
	in := r.Ended - r.FirstTokens + int64(there)
	switch {
	case u.last == 0 || r.FirstTokens < u.last || at-u.since > 2*leastFor:
		u.since, u.least = at, [2]int64{in, math.MaxInt64}
	case at-u.since > leastFor:
		u.since, u.least = at, [2]int64{in, u.least[0]}
	default:
		u.least[0] = min(u.least[0], in)
	}
	u.last = r.FirstTokens
	return int(min(max(in-min(u.least[0], u.least[1]), int64(r.Waiting)), int64(there))), true
}

// callsOfOthers tells what a call of other callers brings to one endpoint: what its server counts, less what the picker's own
// calls brought.
type callsOfOthers struct{ counted, own work }

// mostPrompt bounds what a call can bring, in tokens, where the size of the cache is not known.
const mostPrompt = 1e6

// count notes first tokens of all callers, and how many prompt tokens the server computed for them.
func (c *callsOfOthers) count(now float64, calls int, tokens, cache float64) {
	if cache <= 0 {
		cache = mostPrompt
	}
	c.counted.add(now, float64(calls), min(tokens, float64(calls)*cache))
}

// othersTokens is what a call of others brings to endpoint n on average, in tokens to prefill.
func (s *State) othersTokens(n int32) float64 {
	return s.workOfOthers(s.loads[n].others.tokens(s.MeanTokens()/s.density), 1)
}

// tokens is the mean of the uncached prompt tokens of a call, or otherwise where nothing was counted.
func (c *callsOfOthers) tokens(otherwise float64) float64 {
	calls, tokens := c.counted.calls-c.own.calls, c.counted.tokens-c.own.tokens
	switch {
	case c.counted.calls < 1e-9:
		return otherwise
	case calls < c.counted.calls/10 || tokens < 0:
		return c.counted.tokens / c.counted.calls
	}
	return tokens / calls
}
