package poolstate

import (
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// Snapshot is a pool's state at one time, for people to read.
type Snapshot struct {
	// At is the time of the snapshot, on the pool's clock.
	At time.Duration
	// Endpoints are in the order of the pool. Those that left and still have calls come last.
	Endpoints []EndpointState
	// Stints tell which pickers picked for the pool of late, in no order.
	Stints []Stint
	// Split says that each picker picks for a part of the callers.
	Split bool
	// Picks are some of the latest picks, the newest first.
	Picks []Decision
	// Line is what waits at the picker.
	Line Line
	// Needed is how many endpoints the pool's calls need; NaN where another picker picks for the pool.
	Needed float64
}

// EndpointState is one endpoint's state at one time.
type EndpointState struct {
	Pod, Address string
	// Member says that the endpoint can be picked.
	Member bool
	selection.Standing
	// Reading is the endpoint's last reading, and ReadingAge its age; nil where the endpoint was never read.
	Reading    *modelmetrics.Reading
	ReadingAge time.Duration
	// CachedShare is the share of recent prompt tokens that the endpoint found in its cache, and ObservedFirstToken its
	// recent mean time to first token in seconds. NaN is not known.
	CachedShare, ObservedFirstToken float64
	// ObservedToExpected is how many times as long as expected the first tokens of the picker's recent calls took; NaN where
	// none was followed.
	ObservedToExpected float64
	// ToldTokens is how many tokens the server has told that its cache has, in whole blocks; -1 where its pool does not ask.
	ToldTokens int
}

// copiedAtOnce is how many endpoints are copied between two releases of the mutex: some 20 µs.
const copiedAtOnce = 64

// Snapshot copies the pool's state. Picks go on meanwhile, so two endpoints' states may be microseconds apart.
func (p *Pool) Snapshot() Snapshot {
	snap := p.snapshot.Load()
	out := Snapshot{Endpoints: make([]EndpointState, 0, len(snap.numbers))}
	for i := 0; i < len(snap.numbers); i += copiedAtOnce {
		p.mu.Lock()
		now := p.clock()
		for k := i; k < min(i+copiedAtOnce, len(snap.numbers)); k++ {
			if n, e := snap.numbers[k], snap.endpoints[k]; p.slots[n].member && p.slots[n].addr == e.Address {
				out.Endpoints = append(out.Endpoints, p.endpointState(n, e.Pod, now))
			}
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out.At = p.clock()
	out.Split = p.settings.Load().Split
	out.Picks = p.recent.latest()
	out.Stints = p.stints(out.At)
	out.Line, out.Needed = p.lineNow(out.At), p.needed(out.At)
	for n := range p.slots {
		if s := &p.slots[n]; !s.member && p.choice.InFlight(int32(n)) > 0 {
			out.Endpoints = append(out.Endpoints, p.endpointState(int32(n), "", out.At))
		}
	}
	return out
}

// endpointState returns one endpoint's state. The pool's mutex is held.
func (p *Pool) endpointState(n int32, pod string, now time.Duration) EndpointState {
	s := &p.slots[n]
	out := EndpointState{
		Pod: pod, Address: s.text, Member: s.member, Standing: p.choice.Standing(n, now),
		CachedShare: math.NaN(), ObservedFirstToken: math.NaN(), ObservedToExpected: s.observed.toExpected(),
		ToldTokens: s.told.tokens(),
	}
	if o := s.observed; o != nil {
		reading := o.reading
		out.Reading, out.ReadingAge = &reading, now-o.at
		out.CachedShare, out.ObservedFirstToken = o.cachedShare(), o.firstToken()
	}
	return out
}
