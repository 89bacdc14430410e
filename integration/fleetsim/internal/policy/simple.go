package policy

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Random picks any server.
var Random = Policy{"random", func(s Setting) (Picker, error) { return &random{rnd: chance(s, 1)}, nil }}

// RoundRobin picks the servers in turn.
var RoundRobin = Policy{"round robin", func(Setting) (Picker, error) { return &roundRobin{}, nil }}

// LeastRequest draws two servers and picks the one with fewer calls in flight, as Envoy's least_request does.
var LeastRequest = Policy{"least request", func(s Setting) (Picker, error) {
	return &leastRequest{rnd: chance(s, 2), serving: map[int]int{}, inFlight: map[int]int{}}, nil
}}

type members []int

func (m *members) Members(_ time.Duration, now []int) { *m = slices.Clone(now) }

type random struct {
	members
	rnd *rand.Rand
}

func (p *random) Pick(time.Duration, int, *workload.Call) int {
	return p.members[p.rnd.IntN(len(p.members))]
}

func (p *random) Ended(time.Duration, int) {}

type roundRobin struct {
	members
	next int
}

func (p *roundRobin) Pick(time.Duration, int, *workload.Call) int {
	p.next++
	return p.members[p.next%len(p.members)]
}

func (p *roundRobin) Ended(time.Duration, int) {}

type leastRequest struct {
	members
	rnd      *rand.Rand
	serving  map[int]int // server by call
	inFlight map[int]int // calls by server
}

func (p *leastRequest) Pick(_ time.Duration, id int, _ *workload.Call) int {
	a, b := p.members[p.rnd.IntN(len(p.members))], p.members[p.rnd.IntN(len(p.members))]
	if p.inFlight[b] < p.inFlight[a] {
		a = b
	}
	p.serving[id] = a
	p.inFlight[a]++
	return a
}

func (p *leastRequest) Ended(_ time.Duration, id int) {
	p.inFlight[p.serving[id]]--
	delete(p.serving, id)
}
