package fleet

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/inferencereq"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/prefixindex"
	"github.com/inference-waypoint/inference-waypoint/internal/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// assumedBlocks is the capacity taken for an endpoint's prefix cache until it tells its own: 524,288 tokens in blocks
// of 64, the order of magnitude of an 8B model's on an 80 GB device.
const assumedBlocks = 8192

// Pool is one pool's state. Its methods may be called from several goroutines.
type Pool struct {
	metrics  *telemetry.PoolMetrics
	clock    func() time.Duration
	index    *prefixindex.Index
	snapshot atomic.Pointer[snapshot]

	noEndpoints, notInSubset *refusal.Error

	// mu makes a pick and its reservation one step, so that of a burst each call sees all that came before it. It
	// is held for microseconds, never over I/O.
	mu     sync.Mutex
	rnd    *rand.Rand
	picks  uint64
	byAddr map[netip.AddrPort]int32
	slots  []slot
	free   []int32
	view   selection.View // Loads and Cached run parallel to slots
	subset []int32        // room for the candidates of one pick
}

// snapshot is the pool's endpoints at one moment; it never changes.
type snapshot struct {
	endpoints []pool.Endpoint
	numbers   []int32 // parallel to endpoints
}

// slot is what an endpoint's number stands for. A number is given out anew once its endpoint has left and the last
// call to it has ended.
type slot struct {
	addr netip.AddrPort
	// text is the address as replies name it.
	text string
	// member says that the endpoint is in the snapshot.
	member bool
}

func newPool(name types.NamespacedName, metrics *telemetry.PoolMetrics, rnd *rand.Rand, clock func() time.Duration) *Pool {
	p := &Pool{
		metrics:     metrics,
		clock:       clock,
		index:       prefixindex.New(assumedBlocks),
		noEndpoints: refusal.New(refusal.NoEndpoints, "pool %s has no ready endpoint", name),
		notInSubset: refusal.New(refusal.NotInSubset,
			"none of the endpoints that the proxy allows is a ready endpoint of pool %s", name),
		rnd:    rnd,
		byAddr: map[netip.AddrPort]int32{},
	}
	p.snapshot.Store(&snapshot{})
	return p
}

// Metrics are the pool's own.
func (p *Pool) Metrics() *telemetry.PoolMetrics { return p.metrics }

// Endpoints are those that can be picked now. The slice must not be changed.
func (p *Pool) Endpoints() []pool.Endpoint { return p.snapshot.Load().endpoints }

// Pick chooses the endpoints for a call and reserves the first of them, in one step. The reservation is written to
// r, which must be empty or released; it refers to the facts' blocks, which must live until it is released. The
// error is a *refusal.Error: the pool has no endpoint, or none that the subset admits.
func (p *Pool) Pick(facts *inferencereq.Facts, subset *Subset, r *Reservation) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	snap := p.snapshot.Load()
	if len(snap.numbers) == 0 {
		return p.noEndpoints
	}
	p.view.Candidates = snap.numbers
	if subset.Given {
		if p.view.Candidates = p.admitted(subset); len(p.view.Candidates) == 0 {
			return p.notInSubset
		}
	}
	p.index.Match(facts.Blocks, p.view.Cached)
	now := p.clock()
	var choices [selection.Choices]selection.Choice
	n := selection.Pick(facts, &p.view, now, p.rnd, &choices)
	p.reserve(r, choices[:n], facts, now)
	return nil
}

// reserve charges the first of the choices with the call. What it will have cached counts from now on, so that the
// next call with the same prompt finds it.
func (p *Pool) reserve(r *Reservation, choices []selection.Choice, facts *inferencereq.Facts, now time.Duration) {
	first := choices[0]
	load := &p.view.Loads[first.Endpoint]
	p.picks++
	load.LastPick = p.picks
	*r = Reservation{
		pool:         p,
		number:       first.Endpoint,
		ticket:       load.Add(now, float64(first.Uncached)),
		blocks:       facts.Blocks,
		picked:       len(choices),
		PromptTokens: first.Cached + first.Uncached,
		CachedTokens: first.Cached,
	}
	for i, c := range choices {
		r.texts[i] = p.slots[c.Endpoint].text
	}
	p.index.Insert(int(first.Endpoint), facts.Blocks)
	p.metrics.RequestStarted()
}

// admitted lists the endpoints that a subset admits, each once.
func (p *Pool) admitted(s *Subset) []int32 {
	p.subset = p.subset[:0]
	for _, want := range s.Endpoints {
		if want.Port() != 0 {
			if n, ok := p.byAddr[want]; ok && p.slots[n].member {
				p.subset = append(p.subset, n)
			}
			continue
		}
		for n, slot := range p.slots {
			if slot.member && slot.addr.Addr() == want.Addr() {
				p.subset = append(p.subset, int32(n))
			}
		}
	}
	slices.Sort(p.subset)
	p.subset = slices.Compact(p.subset)
	return p.subset
}

// setEndpoints replaces the snapshot.
func (p *Pool) setEndpoints(endpoints []pool.Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.snapshot.Load()
	if slices.Equal(before.endpoints, endpoints) {
		return
	}
	stays := make(map[int32]bool, len(endpoints))
	next := &snapshot{}
	for _, e := range endpoints {
		e.Address = canonical(e.Address)
		n := p.number(e.Address)
		if stays[n] {
			continue // named twice
		}
		stays[n] = true
		next.endpoints = append(next.endpoints, e)
		next.numbers = append(next.numbers, n)
	}
	for _, n := range before.numbers {
		if !stays[n] {
			p.leave(n)
		}
	}
	p.snapshot.Store(next)
	p.metrics.SetEndpoints(len(next.endpoints))
}

// number finds an endpoint's number, or gives it one.
func (p *Pool) number(addr netip.AddrPort) int32 {
	n, ok := p.byAddr[addr]
	if !ok {
		n = p.newSlot()
		p.slots[n] = slot{addr: addr, text: addr.String()}
		p.view.Loads[n] = selection.Load{Rate: selection.DefaultRate}
		p.byAddr[addr] = n
	}
	p.slots[n].member = true
	return n
}

func (p *Pool) newSlot() int32 {
	if last := len(p.free) - 1; last >= 0 {
		n := p.free[last]
		p.free = p.free[:last]
		return n
	}
	p.slots = append(p.slots, slot{})
	p.view.Loads = append(p.view.Loads, selection.Load{})
	p.view.Cached = append(p.view.Cached, 0)
	return int32(len(p.slots) - 1)
}

// leave takes an endpoint out. What it cached is forgotten at once: whoever comes back under its address is new.
func (p *Pool) leave(n int32) {
	p.slots[n].member = false
	p.index.Forget(int(n))
	p.reuse(n)
}

// reuse frees the number of an endpoint that has left and has no call any more.
func (p *Pool) reuse(n int32) {
	if p.slots[n].member || p.view.Loads[n].Requests > 0 {
		return
	}
	delete(p.byAddr, p.slots[n].addr)
	p.slots[n] = slot{}
	p.free = append(p.free, n)
}
