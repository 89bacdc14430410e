package poolstate

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Scraper scrapes endpoints and gives the readings to a fleet; modelmetrics.Scraper is one.
type Scraper interface {
	// Update sets the targets of endpoints, and names those that are no longer scraped; all others stay as they are. The
	// error names the endpoints that cannot be scraped.
	Update(targets map[netip.AddrPort]modelmetrics.Target, gone []netip.AddrPort) error
}

// quietFailures is how many scrapes of an endpoint must fail in a row before one warning is logged.
const quietFailures = 5

// members finds the pools of an endpoint, in the order of their names. Only holders of the fleet's mutex change it; any
// goroutine may read it.
type members struct {
	mu    sync.RWMutex
	pools map[netip.AddrPort][]*Pool
}

// of returns the pools of an endpoint. The slice never changes.
func (m *members) of(endpoint netip.AddrPort) []*Pool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pools[canonical(endpoint)]
}

func (m *members) join(endpoint netip.AddrPort, p *Pool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pools == nil {
		m.pools = map[netip.AddrPort][]*Pool{}
	}
	pools := m.pools[endpoint]
	i := slices.IndexFunc(pools, func(o *Pool) bool { return o.name.String() > p.name.String() })
	if i < 0 {
		i = len(pools)
	}
	m.pools[endpoint] = slices.Insert(slices.Clone(pools), i, p)
}

func (m *members) leave(endpoint netip.AddrPort, p *Pool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(m.pools[endpoint]), func(o *Pool) bool { return o == p })
	if len(left) == 0 {
		delete(m.pools, endpoint)
		return
	}
	m.pools[endpoint] = left
}

// ReadBy gives all endpoints to a scraper, now and whenever they change.
func (f *Fleet) ReadBy(s Scraper) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scraper = s
	f.readAgain(slices.Collect(maps.Keys(f.members.pools)))
}

// membersChanged notes which endpoints joined and left a pool, and tells the scraper. Its cost depends on this pool
// alone.
func (f *Fleet) membersChanged(p *Pool, before, after []pool.Endpoint) {
	left := make(map[netip.AddrPort]bool, len(before))
	for _, e := range before {
		left[e.Address] = true
	}
	var changed []netip.AddrPort
	for _, e := range after {
		if left[e.Address] {
			delete(left, e.Address)
			continue
		}
		f.members.join(e.Address, p)
		changed = append(changed, e.Address)
	}
	for address := range left {
		f.members.leave(address, p)
		changed = append(changed, address)
	}
	f.readAgain(changed)
}

// target returns where an endpoint of the pool is scraped, and as which engine.
func (p *Pool) target(endpoint netip.AddrPort) modelmetrics.Target {
	s := p.settings.Load()
	engine, _ := modelmetrics.ParseEngine(s.Engine) // the settings hold only known names, which a test checks
	return modelmetrics.Target{URL: "http://" + endpoint.String() + s.MetricsPath, Engine: engine, Tenant: p.name.Namespace}
}

// readAgain sets the scraper's targets for endpoints. Where two pools that share an endpoint want it scraped
// differently, the pool whose name comes first decides, and the endpoint counts for that pool's namespace.
func (f *Fleet) readAgain(endpoints []netip.AddrPort) {
	f.hearAgain(endpoints)
	if f.scraper == nil || len(endpoints) == 0 {
		return
	}
	targets := make(map[netip.AddrPort]modelmetrics.Target, len(endpoints))
	var gone []netip.AddrPort
	for _, endpoint := range endpoints {
		if pools := f.members.of(endpoint); len(pools) > 0 {
			targets[endpoint] = pools[0].target(endpoint)
		} else {
			gone = append(gone, endpoint)
		}
	}
	if err := f.scraper.Update(targets, gone); err != nil {
		f.options.Log.Warn("some endpoints have no usable metrics URL; they are picked without readings", "error", err)
	}
}

func addressesIn(endpoints []pool.Endpoint) []netip.AddrPort {
	out := make([]netip.AddrPort, len(endpoints))
	for i, e := range endpoints {
		out[i] = e.Address
	}
	return out
}

// Scraped gives an endpoint's reading to all pools that the endpoint is in.
func (f *Fleet) Scraped(endpoint netip.AddrPort, r modelmetrics.Reading) {
	age := r.Age(time.Now())
	for _, p := range f.members.of(endpoint) {
		p.Observe(endpoint, r, age)
	}
}

// ScrapeFailed notes that an endpoint's scrape failed. The endpoint's last reading goes on losing weight.
func (f *Fleet) ScrapeFailed(endpoint netip.AddrPort, n int, err error) {
	if n == quietFailures {
		f.options.Log.Warn("an endpoint's metrics cannot be read; it is picked without readings",
			"endpoint", endpoint.String(), "error", err)
	}
}

// Observe takes a reading of an endpoint and the reading's age. It ignores endpoints that are not in the pool. Where
// another picker picks for the pool, it takes the reading later.
func (p *Pool) Observe(endpoint netip.AddrPort, r modelmetrics.Reading, age time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.standsBy(p.clock()) {
		p.taken++
		p.observe(endpoint, r, age)
		return
	}
	of, picked, process := p.taken, p.own.last, p.processAt(endpoint)
	p.after(toldWithin, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		// A later reading may have been taken since, another server have the address, or this picker have picked.
		if p.taken == of && p.own.last == picked && p.processAt(endpoint) == process {
			p.observe(endpoint, r, age)
		}
	})
}

// processAt returns the process at an address; "" where none is known.
func (p *Pool) processAt(endpoint netip.AddrPort) string {
	if n, known := p.byAddr[canonical(endpoint)]; known {
		return p.slots[n].process
	}
	return ""
}

func (p *Pool) observe(endpoint netip.AddrPort, r modelmetrics.Reading, age time.Duration) {
	n, known := p.byAddr[canonical(endpoint)]
	if !known || !p.slots[n].member {
		return
	}
	s := &p.slots[n]
	if s.restarts >= 0 && s.restarts != r.Restarts {
		p.forget(n)
	}
	s.restarts = r.Restarts
	now := p.clock()
	if s.observed == nil {
		s.observed = &observed{}
	}
	p.waits.outputs.see(now, &s.observed.reading, &r)
	s.observed.take(r, now-age)
	first := p.choice.Observe(n, now, &selection.Reading{
		At:              now - age,
		Running:         r.Running,
		Waiting:         r.Waiting,
		Deferred:        r.Deferred,
		WaitingSplit:    r.WaitingSplit,
		KVUsage:         r.KVUsage,
		KVTokens:        int(min(r.CapacityTokens, picksettings.MostTokens)),
		Model:           r.Model,
		MaxAdapters:     r.MaxLoRA,
		RunningAdapters: r.RunningAdapters,
		WaitingAdapters: r.WaitingAdapters,
		Told:            p.standsBy(now),
		Counters: selection.Counters{
			Prefilled:         prefilled(&r),
			FirstTokens:       r.FirstTokens,
			FirstTokenSeconds: r.FirstTokenSeconds,
			Prompts:           r.PromptTokens,
			Ended:             ended(&r),
		},
	})
	if !first.Taken {
		return
	}
	defer p.letGo(now)
	p.learnCapacity(n, r.CapacityTokens)
	p.learnGrain(n, r.BlockTokens)
	p.occupy(n, &r, first.Shared)
	p.pace.served.add(now, min(first.Counted, mostServed), paceMemory)
	s.observed.compare(first)
	p.tellSpeed(n, now)
	if !p.standsBy(now) && p.choice.Own(n) { // another picker counts the others
		p.metrics.FirstTokens(first.Calls, first.Expected, first.Observed)
	}
}

// prefilled returns how many prompt tokens a server computed, where it counts them by the calls' first tokens; else 0.
func prefilled(r *modelmetrics.Reading) int64 {
	switch {
	case r.ComputedTokens > 0:
		return r.ComputedTokens
	case r.Engine == modelmetrics.SGLang || r.Engine == modelmetrics.TRTLLMServe:
		return 0 // without that counter they count when a call ends
	}
	return r.PromptTokens - r.CacheHits
}

// learnGrain sets how long the blocks of an endpoint's cache are. A server finds whole blocks of a prompt only. Most have blocks
// of 16 tokens; those of models with more than one kind of attention can have hundreds.
func (p *Pool) learnGrain(n int32, tokens int64) {
	grain := float64(min(tokens, mostBlockTokens)) / p.choice.TokenRatio(n) / selection.BlockTokens
	p.slots[n].grain = int32(math.Round(grain))
	p.coarse = p.coarse || p.slots[n].grain > 1
	p.slots[n].blockTokens = int(min(tokens, mostBlockTokens))
	if t := p.slots[n].told; t != nil && t.blockTokens == 0 {
		t.blockTokens = p.slots[n].blockTokens
	}
}

// cachedBlocks returns what each endpoint has of a prompt: what the index holds, rounded down to whole blocks of the server, or what
// the server told, if that is more.
func (p *Pool) cachedBlocks(blocks []uint64) []int32 {
	if !p.coarse && p.tellers == 0 {
		return p.held
	}
	p.cached = append(p.cached[:0], p.held...)
	for n := range p.cached {
		if grain := p.slots[n].grain; grain > 1 {
			p.cached[n] -= p.cached[n] % grain
		}
	}
	if p.tellers > 0 {
		p.addTold(p.cached, blocks)
	}
	return p.cached
}

// ended returns how many calls ended, where the server counts them as it counts the running ones; else 0. SGLang updates the
// number of running calls with some batches only.
func ended(r *modelmetrics.Reading) int64 {
	if r.Engine == modelmetrics.SGLang {
		return 0
	}
	return r.Ended
}

// steady is the part by which a capacity must change to count: the length of tokens is learned, and changes a little all the
// time.
const steady = 1.0 / 32

// learnCapacity sets how many blocks an endpoint's cache holds.
func (p *Pool) learnCapacity(n int32, tokens int64) {
	blocks := int(float64(min(tokens, picksettings.MostTokens)) / p.choice.TokenRatio(n) / selection.BlockTokens)
	if blocks <= 0 || math.Abs(float64(blocks-p.slots[n].blocks)) <= steady*float64(p.slots[n].blocks) {
		return
	}
	p.slots[n].blocks = blocks
	p.index.SetCapacity(int(n), blocks)
}
