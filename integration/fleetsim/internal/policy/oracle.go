package policy

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Oracle decides by the rule that ours rests on, plainly: the least sum of the time until the call's first token and
// of what its prefill costs others. It knows what no picker can: what each server has cached or is about to compute,
// how many tokens it has left to prefill, how fast it is at this moment, and which adapters are loaded.
var Oracle = Policy{"oracle", func(s Setting) (Picker, error) { return newOracle(s), nil }}

// Patient is the oracle with the one thing in which our rule goes beyond the plain one: the longer the shortest queue is,
// the more a token to prefill is taken to cost others. Both know all, so what lies between them is the rule's doing.
var Patient = Policy{"patient oracle", func(s Setting) (Picker, error) {
	o := newOracle(s)
	o.patient = true
	return o, nil
}}

func newOracle(s Setting) *oracle {
	return &oracle{rnd: chance(s, 4), servers: s.Servers, rate: s.Rate, load: s.AdapterLoad}
}

const (
	// othersShare is what a token to prefill costs those who come behind, as a multiple of its own time: ρ/(1-ρ) in
	// an M/G/1 queue with a utilisation ρ of one half.
	othersShare = 1
	// patience is the length of the shortest queue, in seconds, over which the patient oracle counts that once more, and
	// mostShare where it ends.
	patience, mostShare = 2, 8
	// decodeTokens is what a call in flight costs a new one, in tokens to prefill.
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

// others is what a token to prefill costs those who come behind, as a multiple of its own time.
func (p *oracle) others() float64 {
	if !p.patient {
		return othersShare
	}
	shortest := math.Inf(1)
	for _, m := range p.members {
		shortest = min(shortest, float64(p.servers[m].Backlog())/p.rate(m))
	}
	return min(max(othersShare, shortest/patience), mostShare)
}

// cost is in seconds. Where memory is short for what is to be prefilled, the rest of it waits for calls to end; that is
// counted as long as prefilling it takes.
func (p *oracle) cost(m int, c *workload.Call, others float64) float64 {
	s := p.servers[m]
	wait, own := float64(s.Backlog()), float64(c.Prompt-s.Cached(c))
	short := max(0, wait+own-float64(s.FreeTokens()))
	tokens := wait + (1+others)*own + decodeTokens*float64(s.Calls()) + short
	return tokens/p.rate(m) + p.adapterCost(s, c.Adapter)
}

// adapterCost is the time to load an adapter that is not there, and the same again for the one that it pushes out.
// Where all slots are in use it also waits for one of them.
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
