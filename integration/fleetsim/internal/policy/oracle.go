package policy

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Oracle decides by the plain form of our rule: the least sum of the time until the call's first token and of what its
// prefill costs other calls. It knows what no picker can: what each server has cached or will compute, how many tokens it
// has left to prefill, how fast it is now, and which adapters are loaded.
var Oracle = Policy{"oracle", func(s Setting) (Picker, error) { return newOracle(s), nil }}

// Patient is the oracle with our rule's only addition to the plain rule: the longer the shortest queue is, the more a token
// to prefill costs other calls. Both know the servers' true state, so that a difference comes from the rule.
var Patient = Policy{"patient oracle", func(s Setting) (Picker, error) {
	o := newOracle(s)
	o.patient = true
	return o, nil
}}

func newOracle(s Setting) *oracle {
	return &oracle{rnd: chance(s, 4), servers: s.Servers, rate: s.Rate, load: s.AdapterLoad}
}

const (
	// othersShare is the cost of a token to prefill for later calls, as a multiple of its own time: ρ/(1-ρ) in an M/G/1 queue
	// with a utilisation ρ of one half.
	othersShare = 1
	// The patient oracle derives that multiple from the shortest queue: 1 per patience seconds of it, from othersShare
	// up to mostShare.
	patience, mostShare = 2, 8
	// decodeTokens is the cost of a call in flight for a new one, in tokens to prefill.
	decodeTokens = 32
)

type oracle struct {
	members
	rnd     *rand.Rand
	servers []*server.Server
	rate    func(int) float64
	load    time.Duration
	patient bool
}

func (p *oracle) Ended(time.Duration, int) {}

func (p *oracle) Pick(_ time.Duration, _ int, c *workload.Call) int {
	best, least, equal := 0, math.Inf(1), 0
	others := p.others()
	for _, m := range p.members {
		cost := p.cost(m, c, others)
		switch {
		case cost < least:
			best, least, equal = m, cost, 1
		case cost == least:
			if equal++; p.rnd.IntN(equal) == 0 {
				best = m
			}
		}
	}
	return best
}

// others returns the cost of a token to prefill for later calls, as a multiple of its own time.
func (p *oracle) others() float64 {
	if !p.patient {
		return othersShare
	}
	shortest := math.Inf(1)
	for _, m := range p.members {
		shortest = min(shortest, p.servers[m].Backlog()/p.rate(m))
	}
	return min(max(othersShare, shortest/patience), mostShare)
}

// cost is in seconds. If memory is short for the tokens to prefill, the rest of them waits for calls to end; that wait
// counts as long as their prefill.
func (p *oracle) cost(m int, c *workload.Call, others float64) float64 {
	s := p.servers[m]
	wait, own := s.Backlog(), s.Work(c)
	need := (wait + own) * float64(c.Prompt-s.Cached(c)) / own // in tokens, if those that wait are like this call's
	short := max(0, need-float64(s.FreeTokens()))
	tokens := wait + (1+others)*own + decodeTokens*float64(s.Calls()) + short
	return tokens/p.rate(m) + p.adapterCost(s, c.Adapter)
}

// adapterCost is the time to load an adapter that is not loaded, and the same again for the one that it evicts. Where all
// slots are in use, it adds the wait for a slot.
func (p *oracle) adapterCost(s *server.Server, name string) float64 {
	slots := s.Adapters()
	if name == "" || slices.ContainsFunc(slots, func(a server.AdapterSlot) bool { return a.Name == name }) {
		return 0
	}
	loads := 1.0
	if len(slots) == s.Slots() {
		loads++
		if !slices.ContainsFunc(slots, func(a server.AdapterSlot) bool { return a.Running == 0 }) {
			loads++
		}
	}
	return loads * p.load.Seconds()
}
