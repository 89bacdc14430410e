package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Ours is this project's picker: the pool state, the index and the rule of a cluster's picker, under a virtual clock.
var Ours = Policy{"waypoint", func(s Setting) (Picker, error) { return newOurs(s) }}

// ours connects the simulator and the picker: only this type calls the picker's pool.
type ours struct {
	now, interval time.Duration
	fleet         *poolstate.Fleet
	pool          *poolstate.Pool
	facts         request.Facts
	reservations  map[int]*poolstate.Reservation
	numbers       map[string]int // of servers, by address
	text          []byte
}

var poolName = types.NamespacedName{Namespace: "simulated", Name: "fleet"}

func newOurs(s Setting) (*ours, error) {
	p := &ours{
		interval:     modelmetrics.DefaultOptions().Interval(len(s.Servers)),
		reservations: map[int]*poolstate.Reservation{},
		numbers:      map[string]int{},
	}
	p.fleet = poolstate.New(poolstate.Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()),
		Seed:    s.Seed,
		Clock:   func() time.Duration { return p.now },
	})
	for n := range s.Servers {
		p.numbers[address(n).String()] = n
	}
	p.fleet.SetPool(pool.Pool{Name: poolName}, nil)
	if p.pool = p.fleet.Pool(poolName); p.pool == nil {
		return nil, fmt.Errorf("pool %s is not known after it was set", poolName)
	}
	return p, nil
}

func (p *ours) Members(now time.Duration, members []int) {
	p.now = now
	endpoints := make([]pool.Endpoint, 0, len(members))
	for _, n := range members {
		endpoints = append(endpoints, pool.Endpoint{Address: address(n)})
	}
	p.fleet.SetPool(pool.Pool{Name: poolName}, endpoints)
}

func (p *ours) Pick(now time.Duration, id int, c *workload.Call) int {
	p.now = now
	p.facts = factsOf(c)
	r := &poolstate.Reservation{}
	if _, err := p.pool.Pick(&poolstate.Call{Facts: &p.facts}, r); err != nil {
		return -1 // not a member, which ends the run: a pool with endpoints refuses no call
	}
	p.reservations[id] = r
	p.text = r.Endpoints(p.text[:0])
	return p.numbers[first(string(p.text))]
}

func (p *ours) Ended(now time.Duration, id int) {
	p.now = now
	p.reservations[id].Release(poolstate.Answered)
	delete(p.reservations, id)
}

// Failed reports what a proxy reports of an answer with status 500.
func (p *ours) Failed(now time.Duration, id int) {
	p.now = now
	p.reservations[id].Responded(poolstate.Failed)
	p.reservations[id].Release(poolstate.Failed)
	delete(p.reservations, id)
}

// Interval is that of the picker's own scraper for a fleet of this size and these calls.
func (p *ours) Interval() time.Duration { return max(p.interval, p.pool.Pace()) }

func (p *ours) Scraped(now time.Duration, metrics []server.Metrics) {
	p.now = now
	for n, m := range metrics {
		p.pool.Observe(address(n), modelmetrics.Reading{
			Running:           m.Running,
			Waiting:           m.Waiting,
			Deferred:          m.Deferred,
			WaitingSplit:      true,
			KVUsage:           m.KVUsage,
			CapacityTokens:    int64(m.CacheTokens),
			MaxLoRA:           m.Slots,
			RunningAdapters:   m.Adapters,
			PromptTokens:      int64(m.PromptTokens),
			CacheHits:         int64(m.CacheHits),
			FirstTokens:       int64(m.FirstTokens),
			FirstTokenSeconds: m.FirstTokenTime.Seconds(),
			Prefill: modelmetrics.Prefill{
				Computed: int64(m.ComputedTokens), Generated: int64(m.Generated),
				Ended: int64(m.Ended), EndedComputed: int64(m.EndedComputed),
				PrefillSeconds: m.PrefillTime.Seconds(), QueueSeconds: m.QueueTime.Seconds(), DecodeSeconds: m.DecodeTime.Seconds(),
			},
		}, 0)
	}
}

// factsOf returns the facts that the picker would read from a request with this prompt: four bytes a token, a bounded
// number of blocks, and the adapter as the model.
func factsOf(c *workload.Call) request.Facts {
	return request.Facts{
		API:         request.ChatCompletions,
		Model:       cmp.Or(c.Adapter, "base"),
		PromptBytes: c.Prompt * request.BlockBytes / workload.BlockTokens,
		Blocks:      c.Blocks[:min(len(c.Blocks), request.MaxBlocks)],
	}
}

func address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 8000)
}

func first(list string) string {
	for i := range len(list) {
		if list[i] == ',' {
			return list[:i]
		}
	}
	return list
}
