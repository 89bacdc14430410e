// Package sim runs a fleet of model servers against a workload in virtual time: calls arrive, a picker picks, the servers
// work, and the outcome of each call is noted. Events have one order, so that a run always gives the same result.
package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Fleet describes the servers of a run.
type Fleet struct {
	// Servers is the number of servers at the start.
	Servers int
	Server  server.Config
	// Changes are the changes during the run, in the order of time.
	Changes []Change
}

// Change is an event of a fleet.
type Change struct {
	At time.Duration
	// Server is the number of the changed server. With Join, a number that was never used adds a server with an empty cache.
	Server int
	Kind   Kind
	// Slowness multiplies, for Slow, the time of each step.
	Slowness float64
}

// Kind is a kind of change.
type Kind uint8

// The kinds of changes. A server that leaves finishes its calls. A server that fails answers each new call with an error at
// once, and the caller repeats the call.
const (
	Join Kind = iota + 1
	Leave
	Slow
	Fail
)

// tries is how often a caller makes a call whose answers are errors.
const tries = 100

// Outcome is the outcome of one call.
type Outcome struct {
	At, First, Last time.Duration
	Server          int
	Prompt, Cached  int
	Resident        bool
	Failed          int // answers with an error before the good one
	ends            int
}

// TTFT is the time to the first token.
func (o *Outcome) TTFT() time.Duration { return o.First - o.At }

// Run serves the calls, which are in the order of arrival, and returns their outcomes.
func Run(f Fleet, calls []workload.Call, p policy.Policy, seed uint64) ([]Outcome, error) {
	r, err := newRun(f, calls, p, seed)
	if err != nil {
		return nil, err
	}
	for id := range calls {
		if err := r.arrive(id); err != nil {
			return nil, err
		}
	}
	r.advance(math.MaxInt64)
	for id := range r.outcomes {
		if n := r.outcomes[id].ends; n != 1 {
			return nil, fmt.Errorf("call %d was answered %d times", id, n)
		}
	}
	return r.outcomes, nil
}

type run struct {
	calls    []workload.Call
	outcomes []Outcome
	servers  []*server.Server
	slowness []float64
	member   []bool
	failing  []bool
	picker   policy.Picker
	scraper  policy.Scraper
	scrape   time.Duration
	metrics  []server.Metrics
	changes  []Change
	answered []answer
}

type answer struct {
	server.Ended
	server int
}

func newRun(f Fleet, calls []workload.Call, p policy.Policy, seed uint64) (*run, error) {
	r := &run{calls: calls, outcomes: make([]Outcome, len(calls)), changes: f.Changes}
	most := f.Servers
	for _, c := range f.Changes {
		most = max(most, c.Server+1)
	}
	for n := range most {
		r.servers = append(r.servers, server.New(f.Server))
		r.slowness = append(r.slowness, 1)
		r.member = append(r.member, n < f.Servers)
	}
	r.metrics = make([]server.Metrics, most)
	r.failing = make([]bool, most)
	var err error
	r.picker, err = p.New(policy.Setting{
		Seed:        seed,
		CacheTokens: f.Server.Blocks * server.BlockTokens,
		Servers:     r.servers,
		Rate:        func(n int) float64 { return f.Server.PrefillRate / r.slowness[n] },
		AdapterLoad: f.Server.AdapterLoad,
	})
	if err != nil {
		return nil, fmt.Errorf("making the picker %s: %w", p.Name, err)
	}
	r.scraper, _ = r.picker.(policy.Scraper)
	r.tellMembers(0)
	return r, nil
}

// arrive advances the time to a call's arrival, and submits the call.
func (r *run) arrive(id int) error {
	c := &r.calls[id]
	r.passUntil(c.At)
	r.advance(c.At)
	n, failed, err := r.pick(id, c)
	if err != nil {
		return err
	}
	if err := r.servers[n].Fits(c); err != nil {
		return fmt.Errorf("call %d: %w", id, err)
	}
	r.outcomes[id] = Outcome{At: c.At, Server: n, Prompt: c.Prompt, Failed: failed}
	r.servers[n].Submit(c.At, id, c)
	return nil
}

// pick returns the picked server that accepts the call, and how many servers failed it before.
func (r *run) pick(id int, c *workload.Call) (n, failed int, err error) {
	for failed = range tries {
		n := r.picker.Pick(c.At, id, c)
		if n < 0 || n >= len(r.servers) || !r.member[n] {
			return 0, 0, fmt.Errorf("call %d was sent to server %d, which is no member", id, n)
		}
		if !r.failing[n] {
			return n, failed, nil
		}
		if sees, ok := r.picker.(policy.FailureWatcher); ok {
			sees.Failed(c.At, id)
		} else {
			r.picker.Ended(c.At, id)
		}
	}
	return 0, 0, fmt.Errorf("call %d was sent %d times to servers that fail", id, tries)
}

// passUntil makes the changes and scrapes that are due up to and including a time.
func (r *run) passUntil(now time.Duration) {
	for {
		changes := len(r.changes) > 0 && r.changes[0].At <= now
		scrapes := r.scraper != nil && r.scrape <= now
		switch {
		case changes && (!scrapes || r.changes[0].At <= r.scrape):
			r.advance(r.changes[0].At)
			r.change(r.changes[0])
			r.changes = r.changes[1:]
		case scrapes:
			r.advance(r.scrape)
			for n, s := range r.servers {
				r.metrics[n] = s.Metrics()
			}
			r.scraper.Scraped(r.scrape, r.metrics)
			r.scrape += r.scraper.Interval()
		default:
			return
		}
	}
}

func (r *run) change(c Change) {
	switch c.Kind {
	case Join, Leave:
		r.member[c.Server] = c.Kind == Join
		r.tellMembers(c.At)
	case Fail:
		r.failing[c.Server] = true
	case Slow:
		r.slowness[c.Server] = c.Slowness
		r.servers[c.Server].SetSlowness(c.Slowness)
	}
}

func (r *run) tellMembers(now time.Duration) {
	var members []int
	for n, is := range r.member {
		if is {
			members = append(members, n)
		}
	}
	r.picker.Members(now, members)
}

// advance runs all servers up to a time, and reports the answers to the picker in the order of their times.
func (r *run) advance(now time.Duration) {
	r.answered = r.answered[:0]
	for n, s := range r.servers {
		s.Advance(now, func(e server.Ended) { r.answered = append(r.answered, answer{e, n}) })
	}
	slices.SortStableFunc(r.answered, func(a, b answer) int { return cmp.Compare(a.Last, b.Last) })
	for _, a := range r.answered {
		o := &r.outcomes[a.ID]
		o.First, o.Last, o.Cached, o.Resident = a.First, a.Last, a.Cached, a.Resident
		o.ends++
		r.picker.Ended(a.Last, a.ID)
	}
}
