package selection

import "math"

// Counters are what a server counted since its start, of all its callers' calls; 0 where it does not tell.
type Counters struct {
	// Prefilled is the number of prompt tokens that were not found in the cache.
	Prefilled int64
	// FirstTokens is the number of calls that have their first token, and FirstTokenSeconds the sum of the times until.
	FirstTokens       int64
	FirstTokenSeconds float64
}

// counted is the stretch of readings over which a server's counters are looked at.
type counted struct {
	from   Counters
	open   bool
	opened float64 // when from was told
	since  float64 // the last reading by which no call of the stretch had its first token
	// deferred says that calls may have waited for the slot of an adapter, which says nothing of prefill.
	deferred bool
}

const (
	// shortestStretch is the time over which counters are looked at, in seconds: calls that are in their prefill at either
	// end count in one sum and not in the other.
	shortestStretch = 2
	// leastPrefill is how many tokens the calls of a stretch have to prefill on average, or the time to their first token
	// is mostly that of a step and tells no speed.
	leastPrefill = 4 * BlockTokens
	// countedWeight is what a time that was found from counters weighs beside one that a queue took: how calls overlapped
	// is guessed. With 1, simulated agents, whose servers seemed to differ, had a 90th percentile of the time to the first
	// token 17 % longer.
	countedWeight = 0.25
)

// take takes in a reading, and gives what was prefilled in which time where the reading ends a stretch.
func (c *counted) take(at float64, r *Reading) (tokens, seconds float64, ok bool) {
	calls := float64(r.FirstTokens - c.from.FirstTokens)
	c.deferred = c.deferred || r.Waiting > 0 && r.MaxAdapters > 0
	switch {
	case !c.open || calls < 0:
		*c = counted{from: r.Counters, open: true, opened: at, since: at}
		return 0, 0, false
	case calls == 0:
		c.since = at
		return 0, 0, false
	case at < c.since+shortestStretch:
		return 0, 0, false
	}
	tokens = float64(r.Prefilled - c.from.Prefilled)
	first := r.FirstTokenSeconds - c.from.FirstTokenSeconds
	lasted := at - max(c.opened, c.since-first/calls) // the first of the calls came before it had its first token
	ok = first > 0 && tokens >= leastPrefill*calls && !c.deferred
	*c = counted{from: r.Counters, open: true, opened: at, since: at}
	return tokens, busy(calls, first, lasted), ok
}

// busy is how much of a time a server prefilled, by the sum of the times to the first tokens of the calls that came in
// it. Calls that come at random wait for one another: where u is the share of the time in which the server prefills, one
// waits u/2(1-u) times its own prefill (Pollaczek and Khinchine, for prompts of one length), and of n calls as much less
// as the one that is itself is of n. Solved for u, it is never more than the sum or the time.
func busy(calls, first, lasted float64) float64 {
	x, a := first/lasted, (1-1/calls)/2
	return lasted * 2 * x / (1 + x + math.Sqrt(max(0, (1+x)*(1+x)-4*(1-a)*x)))
}

// learnFromCounters takes endpoint n's speed from what the server counted: one with head-room never has a queue that
// could be timed. Where the queue was timed, that says more.
func (s *State) learnFromCounters(n int32, now, at float64, r *Reading, timed bool) counted {
	if timed {
		return counted{}
	}
	l := &s.loads[n]
	c := l.told.counted
	if tokens, seconds, ok := c.take(at, r); ok {
		l.speed.observe(now, countedWeight*tokens, countedWeight*seconds, s.hot[n].perToken)
		s.setSpeed(n, now)
	}
	return c
}
