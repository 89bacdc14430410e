// Package policy holds the pickers that are compared: simple ones, the reference picker as its documentation and
// sources describe it, ours as it is, and an oracle. A picker sees what it would see in a cluster, and only the oracle
// the servers themselves.
package policy

import (
	"math/rand/v2"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Picker chooses servers for calls. Times never go back. Servers are named by their numbers.
type Picker interface {
	// Pick chooses one of the members, of which there is at least one, for a call that arrives.
	Pick(now time.Duration, id int, c *workload.Call) int
	// Ended says that a call was answered to its end.
	Ended(now time.Duration, id int)
	// Members says which servers there are from now on, in ascending order.
	Members(now time.Duration, members []int)
}

// Scraper is a Picker that reads the servers' metrics.
type Scraper interface {
	// Interval is the time between two readings.
	Interval() time.Duration
	// Scraped gives it the metrics of all servers, by number.
	Scraped(now time.Duration, metrics []server.Metrics)
}

// FailureWatcher is a Picker that tells a call that failed from one that was answered.
type FailureWatcher interface {
	// Failed says that a call was answered with an error.
	Failed(now time.Duration, id int)
}

// Setting is what a picker may know when it is made.
type Setting struct {
	Seed uint64
	// CacheTokens is the size of each server's cache, as its metrics tell it.
	CacheTokens int
	// Servers are the fleet itself, for the oracle alone.
	Servers []*server.Server
	// Rate is a server's prefill rate at the moment in tokens a second, for the oracle alone.
	Rate func(server int) float64
	// AdapterLoad is how long a server takes to load an adapter.
	AdapterLoad time.Duration
}

// Policy is a kind of picker.
type Policy struct {
	Name string
	New  func(Setting) (Picker, error)
}

// All are the policies that are compared, in the order of the tables.
func All() []Policy {
	return []Policy{Random, RoundRobin, LeastRequest, Reference, Ours, Oracle, Patient}
}

func chance(s Setting, kind uint64) *rand.Rand { return rand.New(rand.NewPCG(s.Seed, kind)) }
