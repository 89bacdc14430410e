package poolstate

import (
	"math"
	"net/netip"
	"time"
)

const (
	// readingsPerPick is how many readings, of all its endpoints together, a pool uses for each call. More readings would
	// cost scrapes that decide nothing: on the real trace (3.3 calls a second on 8 servers, and twice that), picks of
	// servers read every 300 ms, which is 8 readings a call, were as good as of servers read every 50 ms.
	readingsPerPick = 8
	// restInterval is the longest time between scrapes of a pool without calls. Readings count fully for three times as
	// long, so that the first calls after a rest find some.
	restInterval = time.Second
	// leastAsked is the count of calls below which nobody waits for readings, however many calls others send.
	leastAsked = 0.1
	// mostServed bounds what one page may say of how many calls its server had of late.
	mostServed = 10_000
	// paceMemory is the time over which calls are counted.
	paceMemory = 2 * time.Second
)

// pace is how often a pool's endpoints are called, as counts in which each call loses weight with its age.
type pace struct {
	asked  recentCalls // the pool was asked for
	served recentCalls // the endpoints served, whoever sent them: others change an endpoint's load as much
}

// recentCalls is a count of calls that decays.
type recentCalls struct {
	calls float64
	at    time.Duration // when calls was last decayed
}

func (c *recentCalls) add(now time.Duration, calls float64, over time.Duration) {
	c.calls, c.at = c.until(now, over)+calls, now
}

// until returns what is left of the count at the given time, where it decays over a time.
func (c *recentCalls) until(now, over time.Duration) float64 {
	return c.calls * math.Exp(-max(0, (now-c.at).Seconds())/over.Seconds())
}

// interval returns the time after which a new reading of one of so many endpoints is of use, at most restInterval.
func (p *pace) interval(endpoints int, now time.Duration) time.Duration {
	calls := p.asked.until(now, paceMemory)
	if calls > leastAsked {
		calls = max(calls, p.served.until(now, paceMemory))
	}
	perSecond := readingsPerPick * calls / paceMemory.Seconds()
	seconds := float64(endpoints) / max(perSecond, math.SmallestNonzeroFloat64)
	return time.Duration(min(seconds, restInterval.Seconds()) * float64(time.Second))
}

// Pace is the time after which a new reading of an endpoint is of use to the pool.
func (p *Pool) Pace() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pace.interval(len(p.snapshot.Load().endpoints), p.clock())
}

// Pace is the time after which a new reading of an endpoint is of use to the busiest of its pools.
func (f *Fleet) Pace(endpoint netip.AddrPort) time.Duration {
	shortest := restInterval
	for _, p := range f.members.of(endpoint) {
		shortest = min(shortest, p.Pace())
	}
	return shortest
}
