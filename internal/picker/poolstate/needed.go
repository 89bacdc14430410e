package poolstate

import (
	"math"
	"time"
)

const (
	// demandMemory is the time over which the calls' work is averaged.
	demandMemory = time.Minute
	// busyShare is the part of the time for which a server is to prefill. Beyond it waits grow fast, as calls come unevenly.
	busyShare = 0.8
	// fullShare is the part of its KV memory that a server is to use.
	fullShare = 0.9
	// clearWithin is the time within which what waits is to be done.
	clearWithin = time.Minute
)

// Line is what waits at the picker for a pool.
type Line struct {
	Calls int
	// Tokens are what the calls bring, to prefill.
	Tokens  float64
	Oldest  time.Duration // how long the first has waited
	Callers []LineCaller
}

// LineCaller is a caller with calls that wait.
type LineCaller struct {
	// Identity is the caller's SPIFFE ID; "" where it has proven none.
	Identity string
	Priority int
	Weight   float64
	Calls    int
	Oldest   time.Duration
}

// lineNow copies what waits. The pool's mutex is held.
func (p *Pool) lineNow(now time.Duration) Line {
	out := Line{Calls: p.waits.line.Len(), Tokens: p.waits.line.Work()}
	for _, c := range p.waits.line.Callers() {
		oldest := max(0, now-c.At)
		out.Oldest = max(out.Oldest, oldest)
		out.Callers = append(out.Callers, LineCaller{Identity: c.Flow, Priority: c.Priority, Weight: c.Weight, Calls: c.Calls, Oldest: oldest})
	}
	return out
}

// demand notes the work of a call that came, whose endpoints are ranked. The pool's mutex is held.
func (p *Pool) demand(now time.Duration) {
	p.waits.demand.add(now, p.choices[0].Work, demandMemory)
}

// needed returns how many endpoints the pool's calls need, at the speed that its endpoints have: for the prompts that come and those that
// wait, and for the KV memory of the calls that run, whichever is more. It is NaN where another picker picks. The pool's mutex is held.
func (p *Pool) needed(now time.Duration) float64 {
	if p.standsBy(now) {
		return math.NaN()
	}
	perSecond := p.waits.demand.until(now, demandMemory) / demandMemory.Seconds()
	needed := (perSecond/busyShare + p.waits.line.Work()/clearWithin.Seconds()) / p.choice.MeanRate() / p.ownPart() // others' calls are like its own
	usage := 0.0
	for _, n := range p.snapshot.Load().numbers {
		if o := p.slots[n].observed; o != nil && o.reading.KVUsage > 0 { // NaN is not
			usage += o.reading.KVUsage
		}
	}
	needed = max(needed, usage/fullShare)
	if p.waits.line.Len() > 0 {
		needed = max(needed, 1)
	}
	return needed
}
