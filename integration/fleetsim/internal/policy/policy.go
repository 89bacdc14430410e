// Package policy holds the compared pickers: simple ones, the reference picker as its documentation and sources describe
// it, ours as it is, and an oracle. A picker sees what it would see in a cluster. Only the oracle sees the servers.
package policy

import (
	"math/rand/v2"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Picker picks servers for calls. Times never decrease. Servers are numbered.
type Picker interface {
	// Pick picks one of the members, of which there is at least one, for a call that arrives.
	Pick(now time.Duration, id int, c *workload.Call) int
	// Ended reports that a call was answered to its end.
	Ended(now time.Duration, id int)
	// Members sets the servers from now on, in ascending order.
	Members(now time.Duration, members []int)
}

// Scraper is a Picker that reads the servers' metrics.
type Scraper interface {
	// Interval is the time between two readings.
	Interval() time.Duration
	// Scraped passes the metrics of all servers, by number.
	Scraped(now time.Duration, metrics []server.Metrics)
}

// Observer is a Picker to which a proxy shows more of its calls than their ends. Other pickers see each of these ends as any
// other.
type Observer interface {
	// Began reports that a streamed answer began, which is before its first token.
	Began(now time.Duration, id int)
	// Failed reports that a call was answered with a server error, or that its server shed it (429).
	Failed(now time.Duration, id int, shed bool)
	// Left reports that the caller left, and whether the answer had a token by then.
	Left(now time.Duration, id int, began bool)
}

// Listener is a Picker that hears what the servers' caches store and evict.
type Listener interface {
	// Changed passes what a server's cache has stored and evicted, in order. The list must not be kept.
	Changed(now time.Duration, server int, blocks []server.Changed)
}

// What Pick may return in place of a server, for a Holder.
const (
	// Held is returned for a call that waits at the picker.
	Held = -1 - iota
	// Refused is returned for a call that is refused.
	Refused
)

// Holder is a Picker that may hold calls.
type Holder interface {
	// Holds reports whether calls wait.
	Holds() bool
	// Pass advances the picker's clock, and calls a function with each held call that was decided on since the last time, and its
	// server or Refused.
	Pass(now time.Duration, decided func(id, server int))
}

// Setting is what a picker may know at its start.
type Setting struct {
	Seed uint64
	// CacheTokens is the size of each server's cache, as in its metrics.
	CacheTokens int
	// Servers is the fleet, for the oracle only.
	Servers []*server.Server
	// Rate returns a server's current prefill rate in tokens a second, for the oracle only.
	Rate func(server int) float64
	// AdapterLoad is how long a server takes to load an adapter.
	AdapterLoad time.Duration
}

// Policy is a kind of picker.
type Policy struct {
	Name string
	New  func(Setting) (Picker, error)
}

// All returns the compared policies in the order of the tables.
func All() []Policy {
	return []Policy{Random, RoundRobin, LeastRequest, Reference, Ours, Precise, Oracle, Patient}
}

func chance(s Setting, kind uint64) *rand.Rand { return rand.New(rand.NewPCG(s.Seed, kind)) }
