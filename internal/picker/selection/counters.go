package selection

import "math"

// Counters are a server's counters since its start, over the calls of all callers; 0 where it does not report them.
type Counters struct {
	// Prefilled is the number of prompt tokens that were not found in the cache.
	Prefilled int64
	// FirstTokens is the number of calls that got a first token, and FirstTokenSeconds the sum of their times to it.
	FirstTokens       int64
	FirstTokenSeconds float64
}

// counted is the stretch of readings over which a server's counters are compared.
type counted struct {
	from   Counters
	open   bool
	opened float64 // when from was read
	since  float64 // the last reading by which no call of the stretch had its first token
	// deferred says that calls may have been deferred: their times to first token tell no speed.
	deferred bool
}

const (
	// shortestStretch is the shortest time between the compared counters, in seconds. Calls that are being prefilled at
	// either end of a stretch are counted in one of the sums and not in the other.
	shortestStretch = 2
	// leastPrefill is how many tokens the calls of a stretch must prefill on average. With fewer, their time to first
	// token is mostly that of one step, and tells no speed.
	leastPrefill = 4 * BlockTokens
	// countedWeight is the weight of a speed from counters, beside one timed from a queue at 1: how calls overlapped is a
	// guess. With weight 1, simulated agents, whose servers seemed to differ, had a 90th percentile of the time to first
	// token that was 17 % longer.
	countedWeight = 0.25
)

// take adds a reading. Where it ends a stretch, take returns the tokens prefilled and the time spent on prefill.
func (c *counted) take(at float64, r *Reading) (tokens, seconds float64, ok bool) {
	calls := float64(r.FirstTokens - c.from.FirstTokens)
	c.deferred = c.deferred || r.mayDefer()
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
	lasted := at - max(c.opened, c.since-first/calls) // the stretch's first call arrived before its first token
	ok = first > 0 && tokens >= leastPrefill*calls && !c.deferred
	*c = counted{from: r.Counters, open: true, opened: at, since: at}
	return tokens, busy(calls, first, lasted), ok
}

// mayDefer reports whether calls are deferred. Where the server does not tell them apart, any call that waits at one with
// adapters may be.
func (r *Reading) mayDefer() bool {
	return r.Deferred > 0 || !r.WaitingSplit && r.Waiting > 0 && r.MaxAdapters > 0
}

// busy returns for how long a server prefilled, from the sum of the times to first token of the calls in a stretch.
// Calls that arrive at random wait for one another. Let u be the share of the time in which the server prefills. A call
// waits u/2(1-u) times its own prefill (Pollaczek and Khinchine, for prompts of one length), less the n-th part of
// that, as a call does not wait for itself. busy solves this for u, and never returns more than the sum or the stretch.
func busy(calls, first, lasted float64) float64 {
	x, a := first/lasted, (1-1/calls)/2
	return lasted * 2 * x / (1 + x + math.Sqrt(max(0, (1+x)*(1+x)-4*(1-a)*x)))
}

// learnFromCounters takes endpoint n's speed from the server's counters: a server with head-room never has a queue that
// could be timed. Where the queue was timed, the counters are not used.
func (s *State) learnFromCounters(n int32, now, at float64, r *Reading, timed bool) counted {
	if timed {
		return counted{}
	}
	l := &s.loads[n]
	c := l.reading.counted
	if tokens, seconds, ok := c.take(at, r); ok {
		l.speed.observe(now, countedWeight*tokens, countedWeight*seconds, s.hot[n].perToken)
		s.setSpeed(n, now)
	}
	return c
}
