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
	// Foreign are calls of a client that does not ask the picker, in the order of arrival. It takes the servers of the start in
	// turn.
	Foreign []workload.Call
}

// Change is an event of a fleet.
type Change struct {
	At time.Duration
	// Server is the number of the changed server. With Join, a number that was never used adds a server with an empty cache.
	Server int
	Kind   Kind
	// Slowness multiplies, for Slow, the time of each step.
	Slowness float64
	// Most is, for Shed, the number of calls that the server has at most.
	Most int
}

// Kind is a kind of change.
type Kind uint8

// The kinds of changes. A server that leaves finishes its calls. A server that fails answers each new call with a server
// error at once, and one that sheds answers 429 while it has too many calls; the caller repeats the call some times. A server that
// hangs accepts calls, and answers none from then on.
const (
	Join Kind = iota + 1
	Leave
	Slow
	Fail
	Shed
	Hang
)

// never is the slowness of a server that hangs, for the oracle.
const never = 1e12

const (
	// tries is how often a caller makes a call whose answers are errors, and retryAfter the time between two tries.
	tries      = 10
	retryAfter = 500 * time.Millisecond
)

// Outcome is the outcome of one call.
type Outcome struct {
	// First and Last are the times of the first and the last token. Where the caller left, they are at most the time when it
	// did.
	At, First, Last time.Duration
	Server          int
	Prompt, Cached  int
	Resident        bool
	Failed          int  // answers with an error
	Left            bool // the caller left before the answer's end
	Lost            bool // the caller left, or gave up, without a token
	Refused         bool // by the picker
	submitted       bool // a server has accepted it
	ends            int
}

// TTFT is the time to the first token; of a lost call the time until the caller left.
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
	for end := time.Duration(-1); end < r.lastCaller; { // who tries again may have to try once more
		end = r.lastCaller
		if err := r.passUntil(end); err != nil {
			return nil, err
		}
	}
	for end := r.tick; r.holder != nil && r.holder.Holds(); end += tick {
		if err := r.passUntil(end); err != nil {
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
	foreign  []workload.Call
	outcomes []Outcome
	servers  []*server.Server
	first    int // number of servers at the start
	slowness []float64
	member   []bool
	failing  []bool
	hanging  []bool
	most     []int
	picker   policy.Picker
	observer policy.Observer
	scraper  policy.Scraper
	listener policy.Listener
	holder   policy.Holder
	scrape   time.Duration
	held     map[int]bool  // the calls that the picker holds
	tick     time.Duration // when held calls are looked at next
	metrics  []server.Metrics
	events   []event
	answered []answer
	// lastCaller is when the last caller leaves or repeats a call.
	lastCaller time.Duration
}

// event is something whose time is known in advance.
type event struct {
	at time.Duration
	do func() error
}

type answer struct {
	server.Ended
	server int
}

func newRun(f Fleet, calls []workload.Call, p policy.Policy, seed uint64) (*run, error) {
	r := &run{calls: calls, foreign: f.Foreign, outcomes: make([]Outcome, len(calls)), first: f.Servers, held: map[int]bool{}}
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
	r.failing, r.hanging, r.most = make([]bool, most), make([]bool, most), make([]int, most)
	r.plan(f.Changes)
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
	r.holder, _ = r.picker.(policy.Holder)
	r.listener, _ = r.picker.(policy.Listener)
	var observes bool
	if r.observer, observes = r.picker.(policy.Observer); !observes {
		r.observer = blind{r.picker}
	}
	r.tellMembers(0)
	return r, nil
}

// blind is a picker that sees of each call only that it ends.
type blind struct{ policy.Picker }

func (blind) Began(time.Duration, int)                   {}
func (b blind) Failed(now time.Duration, id int, _ bool) { b.Ended(now, id) }
func (b blind) Left(now time.Duration, id int, _ bool)   { b.Ended(now, id) }

// plan lists all events whose times are known in advance.
func (r *run) plan(changes []Change) {
	for _, c := range changes {
		r.events = append(r.events, event{c.At, func() error { r.change(c); return nil }})
	}
	for i := range r.foreign {
		r.events = append(r.events, event{r.foreign[i].At, func() error { return r.arriveForeign(i) }})
	}
	for id := range r.calls {
		if c := &r.calls[id]; c.Patience > 0 {
			at := c.At + c.Patience
			r.lastCaller = max(r.lastCaller, at)
			r.events = append(r.events, event{at, func() error { r.leave(at, id); return nil }})
		}
	}
	slices.SortStableFunc(r.events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
}

// arrive advances the time to a call's arrival, and submits the call.
func (r *run) arrive(id int) error {
	c := &r.calls[id]
	if err := r.passUntil(c.At); err != nil {
		return err
	}
	r.advance(c.At)
	r.outcomes[id] = Outcome{At: c.At, Prompt: c.Prompt}
	return r.attempt(c.At, id)
}

// attempt makes a call for the first time or again.
func (r *run) attempt(now time.Duration, id int) error {
	c, o := &r.calls[id], &r.outcomes[id]
	if o.ends > 0 {
		return nil // the caller has left
	}
	n := r.picker.Pick(now, id, c)
	if n == policy.Held {
		r.tick = max(r.tick, now)
		r.held[id] = true
		return nil
	}
	return r.send(now, id, n)
}

// send sends a call to the server that was picked for it.
func (r *run) send(now time.Duration, id, n int) error {
	c, o := &r.calls[id], &r.outcomes[id]
	if n == policy.Refused {
		o.First, o.Last, o.Lost, o.Refused = now, now, true, true
		o.ends++
		return nil
	}
	if n < 0 || n >= len(r.servers) || !r.member[n] {
		return fmt.Errorf("call %d was sent to server %d, which is no member", id, n)
	}
	if err := r.servers[n].Fits(c); err != nil {
		return fmt.Errorf("call %d: %w", id, err)
	}
	o.Server = n
	full := r.most[n] > 0 && r.servers[n].Calls() >= r.most[n]
	switch {
	case r.failing[n] || full:
		r.refused(now, id, full)
	case r.hanging[n]:
		o.submitted = true
	default:
		o.submitted = true
		r.servers[n].Submit(now, id, c)
		if c.Stream {
			r.observer.Began(now, id)
		}
	}
	return nil
}

// refused ends an attempt that was answered with an error. The caller tries again, or gives up.
func (r *run) refused(now time.Duration, id int, shed bool) {
	r.observer.Failed(now, id, shed)
	o := &r.outcomes[id]
	if o.Failed++; o.Failed == tries {
		o.First, o.Last, o.Lost = now, now, true
		o.ends++
		return
	}
	at := now + retryAfter
	r.lastCaller = max(r.lastCaller, at)
	i, _ := slices.BinarySearchFunc(r.events, at, func(e event, t time.Duration) int { return cmp.Compare(e.at, t+1) })
	r.events = slices.Insert(r.events, i, event{at, func() error { return r.attempt(at, id) }})
}

// arriveForeign submits a call of the client that does not ask the picker. Its number is behind all others.
func (r *run) arriveForeign(i int) error {
	c, s := &r.foreign[i], r.servers[i%r.first]
	if err := s.Fits(c); err != nil {
		return fmt.Errorf("foreign call %d: %w", i, err)
	}
	s.Submit(c.At, len(r.calls)+i, c)
	return nil
}

// leave ends the wait of a caller whose answer has not ended.
func (r *run) leave(now time.Duration, id int) {
	o := &r.outcomes[id]
	if o.ends > 0 {
		return
	}
	if r.held[id] {
		delete(r.held, id)
		r.observer.Left(now, id, false)
	}
	if !o.submitted { // between two tries, or held
		o.First, o.Last, o.Left, o.Lost = now, now, true, true
		o.ends++
		return
	}
	e, began := r.servers[o.Server].Leave(now, id)
	o.First, o.Last, o.Cached, o.Resident = e.First, now, e.Cached, e.Resident
	o.Left, o.Lost = true, !began
	if !began {
		o.First = now
	}
	o.ends++
	r.observer.Left(now, id, began)
}

// passUntil makes the events and scrapes that are due up to and including a time.
func (r *run) passUntil(now time.Duration) error {
	for {
		events := len(r.events) > 0 && r.events[0].at <= now
		scrapes := r.scraper != nil && r.scrape <= now
		if r.holder != nil && r.holder.Holds() && r.tick <= now && (!events || r.tick <= r.events[0].at) && (!scrapes || r.tick <= r.scrape) {
			r.advance(r.tick)
			if err := r.decide(r.tick); err != nil {
				return err
			}
			r.tick += tick
			continue
		}
		switch {
		case events && (!scrapes || r.events[0].at <= r.scrape):
			r.advance(r.events[0].at)
			next := r.events[0]
			r.events = r.events[1:]
			if err := next.do(); err != nil {
				return err
			}
		case scrapes:
			r.advance(r.scrape)
			for n, s := range r.servers {
				r.metrics[n] = s.Metrics()
			}
			r.scraper.Scraped(r.scrape, r.metrics)
			r.scrape += r.scraper.Interval()
		default:
			return nil
		}
	}
}

// tick is the time between two looks at held calls.
const tick = 10 * time.Millisecond

// decide sends the held calls that were decided on.
func (r *run) decide(now time.Duration) (err error) {
	r.holder.Pass(now, func(id, server int) {
		if err == nil {
			delete(r.held, id)
			err = r.send(now, id, server)
		}
	})
	return err
}

func (r *run) change(c Change) {
	switch c.Kind {
	case Join, Leave:
		r.member[c.Server] = c.Kind == Join
		r.tellMembers(c.At)
	case Fail:
		r.failing[c.Server] = true
	case Hang:
		r.hanging[c.Server], r.slowness[c.Server] = true, never
	case Shed:
		r.most[c.Server] = c.Most
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
		if r.hanging[n] {
			continue
		}
		s.Advance(now, func(e server.Ended) {
			if e.ID < len(r.calls) {
				r.answered = append(r.answered, answer{e, n})
			}
		})
		r.tell(now, n)
	}
	slices.SortStableFunc(r.answered, func(a, b answer) int { return cmp.Compare(a.Last, b.Last) })
	for _, a := range r.answered {
		o := &r.outcomes[a.ID]
		o.First, o.Last, o.Cached, o.Resident = a.First, a.Last, a.Cached, a.Resident
		o.ends++
		r.picker.Ended(a.Last, a.ID)
	}
}

// tell passes what a server's cache has stored and evicted to a picker that hears it.
func (r *run) tell(now time.Duration, n int) {
	r.servers[n].Changed(func(blocks []server.Changed) {
		if r.listener != nil {
			r.listener.Changed(now, n, blocks)
		}
	})
}
