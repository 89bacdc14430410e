package fleet

import (
	"net/netip"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/selection"
)

// Scraper reads endpoints and gives the readings to a fleet; modelmetrics.Scraper is one.
type Scraper interface {
	// Set says which endpoints there are. The error tells of those that cannot be read.
	Set(targets map[netip.AddrPort]modelmetrics.Target) error
}

// quietFailures is how many scrapes of an endpoint fail in a row before the log is told, once.
const quietFailures = 5

// ReadBy has a scraper told of all endpoints, now and whenever they change.
func (f *Fleet) ReadBy(s Scraper) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scraper = s
	f.membersChanged()
}

// membersChanged notes which pools an endpoint is in, and tells the scraper of all endpoints. Where two pools with an
// endpoint in common are set to read it differently, the one whose name comes first decides.
func (f *Fleet) membersChanged() {
	members := map[netip.AddrPort][]*Pool{}
	targets := map[netip.AddrPort]modelmetrics.Target{}
	deciding := map[netip.AddrPort]string{}
	for name, p := range *f.pools.Load() {
		settings := p.settings.Load()
		for _, e := range p.Endpoints() {
			members[e.Address] = append(members[e.Address], p)
			if by, ok := deciding[e.Address]; ok && by < name.String() {
				continue
			}
			deciding[e.Address] = name.String()
			targets[e.Address] = settings.target(e.Address)
		}
	}
	f.members.Store(&members)
	if f.scraper == nil {
		return
	}
	if err := f.scraper.Set(targets); err != nil {
		f.options.Log.Warn("some endpoints cannot be read; they are picked by what the picker itself knows", "error", err)
	}
}

// Scraped takes what an endpoint told of itself, for all pools that it is in.
func (f *Fleet) Scraped(endpoint netip.AddrPort, r modelmetrics.Reading) {
	age := r.Age(time.Now())
	for _, p := range (*f.members.Load())[canonical(endpoint)] {
		p.Observe(endpoint, r, age)
	}
}

// ScrapeFailed tells of an endpoint that cannot be read. Its last reading goes on losing weight.
func (f *Fleet) ScrapeFailed(endpoint netip.AddrPort, n int, err error) {
	if n == quietFailures {
		f.options.Log.Warn("an endpoint's metrics cannot be read; it is picked by what the picker itself knows",
			"endpoint", endpoint.String(), "error", err)
	}
}

// Observe takes a reading of an endpoint that is so old. One of an endpoint that the pool does not have is dropped.
func (p *Pool) Observe(endpoint netip.AddrPort, r modelmetrics.Reading, age time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, known := p.byAddr[canonical(endpoint)]
	if !known || !p.slots[n].member {
		return
	}
	s := &p.slots[n]
	if s.restarts >= 0 && s.restarts != r.Restarts {
		p.forget(n)
	}
	s.restarts = r.Restarts
	p.learnCapacity(n, r.CapacityTokens)
	now := p.clock()
	if s.observed == nil {
		s.observed = &observed{}
	}
	s.observed.take(r, now-age)
	p.view.Observe(n, now, &selection.Reading{
		At:              now - age,
		Running:         r.Running,
		Waiting:         r.Waiting,
		KVUsage:         r.KVUsage,
		KVTokens:        int(min(r.CapacityTokens, picksettings.MostTokens)),
		MaxAdapters:     r.MaxLoRA,
		RunningAdapters: r.RunningAdapters,
		WaitingAdapters: r.WaitingAdapters,
		Counters: selection.Counters{
			Prefilled:         r.PromptTokens - r.CacheHits,
			FirstTokens:       r.FirstTokens,
			FirstTokenSeconds: r.FirstTokenSeconds,
		},
	})
}

// learnCapacity tells the index how many of its blocks an endpoint's cache holds.
func (p *Pool) learnCapacity(n int32, tokens int64) {
	blocks := int(min(tokens, picksettings.MostTokens) / selection.BlockTokens)
	if blocks <= 0 || blocks == p.slots[n].blocks {
		return
	}
	p.slots[n].blocks = blocks
	p.index.SetCapacity(int(n), blocks)
}
