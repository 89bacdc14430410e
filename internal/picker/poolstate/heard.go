package poolstate

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/kvevents"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// mostHearing is how many pools hear one endpoint. Each of them costs as much as the first.
const mostHearing = 4

// Subscriber hears what servers tell of their caches and gives it to a fleet; kvevents.Subscriber is one.
type Subscriber interface {
	// Update sets whom to hear, and names endpoints that are no longer heard; all others stay as they are.
	Update(targets map[netip.AddrPort]kvevents.Target, gone []netip.AddrPort)
}

// HeardBy gives all endpoints whose servers are to be heard to a subscriber, now and whenever they change.
func (f *Fleet) HeardBy(s Subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subscriber = s
	f.hearAgain(slices.Collect(maps.Keys(f.members.pools)))
}

// hearAgain sets the subscriber's targets for endpoints. An endpoint is heard if one of its pools asks for it. Where one more pool
// asks, the endpoint is heard from the start, as the new pool does not know what was told before.
func (f *Fleet) hearAgain(endpoints []netip.AddrPort) {
	if f.subscriber == nil {
		return
	}
	targets := map[netip.AddrPort]kvevents.Target{}
	var gone []netip.AddrPort
	for _, endpoint := range endpoints {
		asking := f.askingFor(endpoint)
		if slices.Equal(asking, f.heard[endpoint]) {
			continue
		}
		gone = append(gone, endpoint)
		delete(f.heard, endpoint)
		f.warned.forget(endpoint)
		if len(asking) > 0 {
			targets[endpoint] = kvevents.Target{URL: "http://" + endpoint.String(), Tenant: asking[0].name.Namespace}
			f.heard[endpoint] = asking
		}
	}
	if len(gone) > 0 {
		f.subscriber.Update(nil, gone)
		f.subscriber.Update(targets, nil)
	}
}

// replacedIn returns the addresses at which there is another server than before.
func replacedIn(before, after []pool.Endpoint) []netip.AddrPort {
	processes := make(map[netip.AddrPort]string, len(before))
	for _, e := range before {
		processes[e.Address] = e.Process
	}
	var out []netip.AddrPort
	for _, e := range after {
		if process, known := processes[e.Address]; known && process != e.Process {
			out = append(out, e.Address)
		}
	}
	return out
}

// hearAnew hears endpoints' servers from the start.
func (f *Fleet) hearAnew(endpoints []netip.AddrPort) {
	for _, endpoint := range endpoints {
		if f.heard[endpoint] != nil {
			f.heard[endpoint] = []*Pool{}
		}
	}
	f.hearAgain(endpoints)
}

// askingFor returns the pools that ask for the events of an endpoint's server.
func (f *Fleet) askingFor(endpoint netip.AddrPort) []*Pool {
	var out []*Pool
	for _, p := range f.members.of(endpoint) {
		if p.settings.Load().PrefixEvents && len(out) < mostHearing {
			out = append(out, p)
		}
	}
	return out
}

// CacheChanged gives what an endpoint's server tells of its cache to the pools that hear it.
func (f *Fleet) CacheChanged(endpoint netip.AddrPort, c kvevents.Change) {
	for _, p := range f.askingFor(endpoint) {
		p.CacheChanged(endpoint, c)
	}
}

// warnedFor is how long no further warning of an endpoint's events is logged.
const warnedFor = time.Minute

// EventsFailed notes that an endpoint's server cannot be heard.
func (f *Fleet) EventsFailed(endpoint netip.AddrPort, _ int, err error) {
	now := f.options.Clock()
	f.warned.mu.Lock()
	last, known := f.warned.at[endpoint]
	due := !known || now >= last+warnedFor
	if due {
		f.warned.at[endpoint] = now
	}
	f.warned.mu.Unlock()
	if due {
		f.options.Log.Warn("an endpoint's cache events cannot be read; what it has cached is estimated from the prompts' text",
			"endpoint", endpoint.String(), "error", clipped(err.Error()))
	}
}

// warned is when a warning of each endpoint's events was last logged, on the fleet's clock.
type warned struct {
	mu sync.Mutex
	at map[netip.AddrPort]time.Duration
}

func (w *warned) forget(endpoint netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.at, endpoint)
}
