package poolstate

import (
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// Snapshot is a pool as it is at a moment, for people to see.
type Snapshot struct {
	// At is the moment, on the pool's clock.
	At time.Duration
	// Endpoints are in the order of the pool, those that have left and still have calls at the end.
	Endpoints []EndpointState
	// Picks are some of the latest, the newest first.
	Picks []Decision
}

// EndpointState is one endpoint as it is at a moment.
type EndpointState struct {
	Pod, Address string
	// Member says that the endpoint can be picked.
	Member bool
	selection.Standing
	// Reading is what the endpoint told when it was last read, and ReadingAge how old that is; nil where it never was.
	Reading    *modelmetrics.Reading
	ReadingAge time.Duration
	// CachedShare is the share of prompt tokens of late that the endpoint found in its cache, and ObservedFirstToken its mean
	// time to first token in seconds. NaN is not known.
	CachedShare, ObservedFirstToken float64
}

// lookedAtOnce is how many endpoints are looked at without letting picks in between: some 20 µs.
const lookedAtOnce = 64

// Snapshot looks at the pool. Picks go on meanwhile, so that what it says of two endpoints may be some microseconds apart.
func (p *Pool) Snapshot() Snapshot {
	snap := p.snapshot.Load()
	out := Snapshot{Endpoints: make([]EndpointState, 0, len(snap.numbers))}
	for i := 0; i < len(snap.numbers); i += lookedAtOnce {
		p.mu.Lock()
		now := p.clock()
		for k := i; k < min(i+lookedAtOnce, len(snap.numbers)); k++ {
			if n, e := snap.numbers[k], snap.endpoints[k]; p.slots[n].member && p.slots[n].addr == e.Address {
				out.Endpoints = append(out.Endpoints, p.endpointState(n, e.Pod, now))
			}
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out.At = p.clock()
	out.Picks = p.recent.latest()
	for n := range p.slots {
		if s := &p.slots[n]; !s.member && p.choice.InFlight(int32(n)) > 0 {
			out.Endpoints = append(out.Endpoints, p.endpointState(int32(n), "", out.At))
		}
	}
	return out
}

// endpointState tells of one endpoint. The pool's mutex is held.
func (p *Pool) endpointState(n int32, pod string, now time.Duration) EndpointState {
	s := &p.slots[n]
	out := EndpointState{
		Pod: pod, Address: s.text, Member: s.member, Standing: p.choice.Standing(n, now),
		CachedShare: math.NaN(), ObservedFirstToken: math.NaN(),
	}
	if o := s.observed; o != nil {
		reading := o.reading
		out.Reading, out.ReadingAge = &reading, now-o.at
		out.CachedShare, out.ObservedFirstToken = o.cachedShare(), o.firstToken()
	}
	return out
}
