package policy

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Ours is this project's picker: the pool state, the index and the rule of a cluster's picker, under a virtual clock.
var Ours = Policy{"waypoint", func(s Setting) (Picker, error) { return newHolding(s, "") }}

// Ruled is the same picker, whose pool has rules for callers.
func Ruled(callers string) Policy {
	return Policy{"waypoint, rules", func(s Setting) (Picker, error) { return newHolding(s, callers) }}
}

// Unheld is the same picker, which lets no call wait.
var Unheld = Policy{"waypoint, not holding", func(s Setting) (Picker, error) { return newOurs(s, nil) }}

// Precise is the same picker, where pools ask for the servers' events.
var Precise = Policy{"waypoint, events", func(s Setting) (Picker, error) {
	p, err := newHolding(s, "")
	if err != nil {
		return nil, err
	}
	settings := picksettings.Defaults()
	settings.PrefixEvents = true
	p.fleet.Configure(poolName, settings)
	return &precise{holding: p}, nil
}}

// ours connects the simulator and the picker: only this type calls the picker's pool.
type ours struct {
	now, interval time.Duration
	due           []timer // in no order
	fleet         *poolstate.Fleet
	pool          *poolstate.Pool
	facts         request.Facts
	reservations  map[int]*reserved
	numbers       map[string]int // of servers, by address
	text          []byte
	tokenized     *workload.Call // that is being picked
}

var poolName = types.NamespacedName{Namespace: "simulated", Name: "fleet"}

// newOurs makes a picker. teller tells other pickers what it decides; nil where there are none.
func newOurs(s Setting, teller poolstate.Teller) (*ours, error) {
	p := &ours{
		interval:     modelmetrics.DefaultOptions().Interval(len(s.Servers)),
		reservations: map[int]*reserved{},
		numbers:      map[string]int{},
	}
	p.fleet = poolstate.New(poolstate.Options{
		Metrics:   telemetry.NewMetrics(prometheus.NewRegistry()),
		Seed:      s.Seed,
		Clock:     func() time.Duration { return p.now },
		Tokenizer: (*tokenizer)(p),
		Teller:    teller,
		After:     func(d time.Duration, f func()) { p.due = append(p.due, timer{p.now + d, f}) },
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

// timer is a function that the picker wants to be called.
type timer struct {
	at   time.Duration
	call func()
}

// pass advances the clock, and calls what is due by then.
func (p *ours) pass(now time.Duration) {
	for {
		next := -1
		for i := range p.due {
			if p.due[i].at <= now && (next < 0 || p.due[i].at < p.due[next].at) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		t := p.due[next]
		p.due = slices.Delete(p.due, next, next+1)
		p.now = max(p.now, t.at)
		t.call()
	}
	p.now = now
}

func (p *ours) Members(now time.Duration, members []int) {
	p.pass(now)
	endpoints := make([]pool.Endpoint, 0, len(members))
	for _, n := range members {
		endpoints = append(endpoints, pool.Endpoint{Address: address(n)})
	}
	p.fleet.SetPool(pool.Pool{Name: poolName}, endpoints)
}

func (p *ours) Pick(now time.Duration, id int, c *workload.Call) int {
	p.pass(now)
	p.facts = factsOf(c)
	r := &poolstate.Reservation{}
	p.tokenized = c
	if _, err := p.pool.Pick(&poolstate.Call{Facts: &p.facts, Body: whole}, r); err != nil {
		return none
	}
	return p.picked(id, c, r)
}

// none is no member, which ends the run.
const none = math.MinInt

// picked notes the reservation of a call, and returns its server.
func (p *ours) picked(id int, c *workload.Call, r *poolstate.Reservation) int {
	p.reservations[id] = &reserved{Reservation: r, streamed: c.Stream}
	p.text = r.Endpoints(p.text[:0])
	return p.numbers[first(string(p.text))]
}

// reserved is the reservation of one call.
type reserved struct {
	*poolstate.Reservation
	streamed, began bool
}

// end ends a call as a proxy shows it: of a streamed answer that began, its end looks the same however it came.
func (p *ours) end(now time.Duration, id int, outcome poolstate.Outcome) {
	p.pass(now)
	r := p.reservations[id]
	if r.streamed && r.began {
		outcome = poolstate.Ended
	}
	r.Release(outcome)
	delete(p.reservations, id)
}

func (p *ours) Ended(now time.Duration, id int) { p.end(now, id, poolstate.Answered) }

func (p *ours) Began(now time.Duration, id int) {
	p.pass(now)
	r := p.reservations[id]
	r.began = true
	r.Responded(poolstate.Ended)
}

func (p *ours) Failed(now time.Duration, id int, shed bool) {
	outcome := poolstate.Failed
	if shed {
		outcome = poolstate.Shed
	}
	p.pass(now)
	p.reservations[id].Responded(outcome)
	p.end(now, id, outcome)
}

// Left reports the end of the call's stream and, as the waypoint's access log does, an answer that was broken off before
// its first byte.
func (p *ours) Left(now time.Duration, id int, began bool) {
	number := p.reservations[id].ID()
	p.end(now, id, poolstate.Abandoned)
	if !began {
		p.pool.BrokenOff(number)
	}
}

// Interval is that of the picker's own scraper for a fleet of this size and these calls.
func (p *ours) Interval() time.Duration { return max(p.interval, p.pool.Pace()) }

func (p *ours) Scraped(now time.Duration, metrics []server.Metrics) {
	p.pass(now)
	for n, m := range metrics {
		p.pool.Observe(address(n), modelmetrics.Reading{
			Running:           m.Running,
			Waiting:           m.Waiting,
			Deferred:          m.Deferred,
			WaitingSplit:      true,
			KVUsage:           m.KVUsage,
			CapacityTokens:    int64(m.CacheTokens),
			BlockTokens:       server.BlockTokens,
			MaxLoRA:           m.Slots,
			RunningAdapters:   m.Adapters,
			PromptTokens:      int64(m.PromptTokens),
			CacheHits:         int64(m.CacheHits),
			FirstTokens:       int64(m.FirstTokens),
			FirstTokenSeconds: m.FirstTokenTime.Seconds(),
			ComputedTokens:    int64(m.ComputedTokens),
			GeneratedTokens:   int64(m.Generated),
			Ended:             int64(m.Ended),
		}, 0)
	}
}

// factsOf returns the facts that the picker would read from a request with this prompt: four bytes a token, a bounded
// number of blocks, and the adapter as the model.
func factsOf(c *workload.Call) request.Facts {
	bytes := c.Prompt * cmp.Or(c.TokenBytes, assumedBytes)
	return request.Facts{
		API:         request.ChatCompletions,
		Model:       cmp.Or(c.Adapter, "base"),
		PromptBytes: bytes,
		Blocks:      blocksOf(c, bytes/request.BlockBytes),
		Stream:      c.Stream,
	}
}

// assumedBytes is how many bytes of text a block of the workload stands for a token.
const assumedBytes = request.BlockBytes / workload.BlockTokens

// blocksOf returns the hashes of so many whole blocks of a call's text, which is evenly divided among the workload's blocks.
func blocksOf(c *workload.Call, n int) []uint64 {
	if c.TokenBytes == 0 {
		return c.Blocks[:min(len(c.Blocks), request.MaxBlocks)]
	}
	var out []uint64
	for i := range min(n, request.MaxBlocks) {
		tokens := (i + 1) * request.BlockBytes / c.TokenBytes // that end with this block of text
		if at := tokens/workload.BlockTokens - 1; at >= 0 && at < len(c.Blocks) {
			out = append(out, c.Blocks[at]+uint64(i)*0x9e3779b97f4a7c15)
		}
	}
	return out
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
