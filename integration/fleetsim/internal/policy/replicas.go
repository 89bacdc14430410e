package policy

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

const (
	// collectedFor is for how long a replica collects its events from the first one on, as package peers does, and onTheWay how
	// long a message takes to the other replicas.
	collectedFor = 200 * time.Millisecond
	onTheWay     = time.Millisecond
	// soonFor is the same where several pick for the pool, for each of the others.
	soonFor = 7 * time.Millisecond
)

// HeardWithin is how long it takes at most until the other replicas have heard an event.
const HeardWithin = collectedFor + onTheWay

// HeardSoon is the same of a call where so many replicas pick for the pool.
func HeardSoon(n int) time.Duration { return time.Duration(n-1)*soonFor + onTheWay }

// Pinned is our picker with so many replicas, of which one picks for all calls of the pool. The others hear what it decides.
func Pinned(n int) Policy {
	return severalOf(fmt.Sprintf("%d pickers, pinned", n), n, true, func(Setting) router {
		return func(time.Duration, *workload.Call) int { return 0 }
	})
}

// Shared is our picker with so many replicas, one of which is drawn for each call. told says that they hear what the others
// decide.
func Shared(n int, told bool) Policy {
	name := fmt.Sprintf("%d pickers, shared", n)
	if !told {
		name += ", without events"
	}
	return severalOf(name, n, told, func(s Setting) router {
		rnd := chance(s, 5)
		return func(time.Duration, *workload.Call) int { return rnd.IntN(n) }
	})
}

// Split is our picker with so many replicas, each of which picks for a part of the conversations. All hear what the others
// decide.
func Split(n int) Policy {
	return split(fmt.Sprintf("split over %d pickers", n), n, func(of uint64) int { return int(of % uint64(n)) })
}

// SplitUnevenly is Split with half of the conversations at the first replica, and half of the rest at each next one.
func SplitUnevenly(n int) Policy {
	return split(fmt.Sprintf("split over %d pickers, unevenly", n), n, func(of uint64) int { return min(bits.TrailingZeros64(of), n-1) })
}

func split(name string, n int, replica func(conversation uint64) int) Policy {
	return severalOf(name, n, true, func(Setting) router {
		return func(_ time.Duration, c *workload.Call) int { return replica(conversation(c)) }
	}).with(func(r *replicas) {
		settings := picksettings.Defaults()
		settings.Split = true
		for _, o := range r.all {
			o.fleet.Configure(poolName, settings)
		}
	})
}

// conversation is a hash of a call's conversation or, where the call has none, of its first block.
func conversation(c *workload.Call) uint64 {
	switch {
	case c.Session != 0:
		return workload.Mix(1, c.Session)
	case len(c.Blocks) > 0:
		return workload.Mix(2, c.Blocks[0])
	}
	return 0
}

// Failover is our picker with two replicas. The first picks for all calls until it dies, and the second from then on. told says
// that the second has heard what the first decided.
func Failover(at time.Duration, told bool) Policy {
	name := "failover"
	if !told {
		name += " to a picker that heard nothing"
	}
	return severalOf(name, 2, told, func(Setting) router {
		return func(now time.Duration, _ *workload.Call) int {
			if now < at {
				return 0
			}
			return 1
		}
	}).with(func(r *replicas) { r.dies = at })
}

// with is a policy of several replicas with something changed.
func (p Policy) with(change func(*replicas)) Policy {
	return Policy{p.Name, func(s Setting) (Picker, error) {
		made, err := p.New(s)
		if err != nil {
			return nil, err
		}
		change(made.(*replicas))
		return made, nil
	}}
}

// router returns the number of the replica that gets a call.
type router func(now time.Duration, c *workload.Call) int

func severalOf(name string, n int, told bool, route func(Setting) router) Policy {
	return Policy{name, func(s Setting) (Picker, error) { return newReplicas(s, n, told, route(s)) }}
}

// replicas are several replicas of our picker. Each reads the servers on its own, and hears a moment later what the others
// decide.
type replicas struct {
	all    []*replica
	route  router
	picker map[int]*replica // of each call in flight
	read   time.Duration    // when a replica last read the servers
	// dies is when the first replica dies.
	dies time.Duration
}

// replica is one of them.
type replica struct {
	*ours
	name string
	// told says that others hear what it decides. outbox is what they have not heard, and is told when it is due.
	told   bool
	outbox []poolstate.Event
	due    time.Duration
	soon   time.Duration // for how long it collects events of which one should be heard of soon
	// next is when it reads the servers next.
	next time.Duration
	dead bool
}

func newReplicas(s Setting, n int, told bool, route router) (*replicas, error) {
	p := &replicas{route: route, picker: map[int]*replica{}, dies: math.MaxInt64}
	for i := range n {
		r := &replica{name: strconv.Itoa(i), told: told, soon: time.Duration(n-1) * soonFor}
		own := s
		if i > 0 { // replicas draw between equal servers independently; one picker draws as the first of several does
			own.Seed = rand.New(rand.NewPCG(s.Seed, uint64(i))).Uint64()
		}
		var err error
		if r.ours, err = newOurs(own, r); err != nil {
			return nil, err
		}
		r.next = r.interval * time.Duration(i) / time.Duration(n)
		p.all = append(p.all, r)
	}
	return p, nil
}

// Followed says whether other replicas hear this one.
func (r *replica) Followed() bool { return r.told }

// Process is its name.
func (r *replica) Process() string { return r.name }

// Tell collects an event. The blocks of a call of a workload never change, so they need not be copied.
func (r *replica) Tell(e *poolstate.Event) {
	if len(r.outbox) == 0 {
		r.due = r.now + collectedFor
	}
	if e.Soon {
		r.due = min(r.due, r.now+r.soon)
	}
	r.outbox = append(r.outbox, *e)
}

// pass advances all clocks, delivers what was told by then, and ends the life of a replica that dies.
func (p *replicas) pass(now time.Duration) {
	for i, r := range p.all {
		until := now
		if i == 0 {
			until = min(now, p.dies)
		}
		if at := r.due; len(r.outbox) > 0 && at <= until {
			events := r.outbox
			r.outbox = nil
			p.others(r, at+onTheWay, func(o *replica) {
				for k := range events {
					o.fleet.Apply(r.name, &events[k])
				}
			})
		}
	}
	if first := p.all[0]; now >= p.dies && !first.dead {
		first.dead, first.outbox = true, nil
		p.others(first, p.dies+onTheWay, func(o *replica) { o.fleet.Lost(first.name) })
	}
	for _, r := range p.all {
		if !r.dead {
			r.pass(now)
		}
	}
}

// others lets all other replicas do something at a time.
func (p *replicas) others(than *replica, at time.Duration, do func(*replica)) {
	for _, o := range p.all {
		if o != than {
			o.after(at, func() { do(o) })
		}
	}
}

func (p *replicas) Members(now time.Duration, members []int) {
	p.pass(now)
	for _, r := range p.all {
		r.Members(now, members)
	}
}

func (p *replicas) Pick(now time.Duration, id int, c *workload.Call) int {
	p.pass(now)
	r := p.all[p.route(now, c)]
	p.picker[id] = r
	return r.Pick(now, id, c)
}

// of advances all clocks, and returns the replica that picked for a call; nil where it is dead.
func (p *replicas) of(now time.Duration, id int) *replica {
	p.pass(now)
	if r := p.picker[id]; !r.dead {
		return r
	}
	return nil
}

func (p *replicas) Ended(now time.Duration, id int) {
	if r := p.of(now, id); r != nil {
		r.Ended(now, id)
	}
	delete(p.picker, id)
}

func (p *replicas) Began(now time.Duration, id int) {
	if r := p.of(now, id); r != nil {
		r.Began(now, id)
	}
}

func (p *replicas) Failed(now time.Duration, id int, shed bool) {
	if r := p.of(now, id); r != nil {
		r.Failed(now, id, shed)
	}
	delete(p.picker, id)
}

func (p *replicas) Left(now time.Duration, id int, began bool) {
	if r := p.of(now, id); r != nil {
		r.Left(now, id, began)
	}
	delete(p.picker, id)
}

// Interval is the time until the next replica reads the servers.
func (p *replicas) Interval() time.Duration {
	next := time.Duration(math.MaxInt64)
	for _, r := range p.all {
		if !r.dead {
			next = min(next, r.next)
		}
	}
	return next - p.read
}

// Scraped passes the metrics to the replicas whose turn it is.
func (p *replicas) Scraped(now time.Duration, metrics []server.Metrics) {
	p.pass(now)
	p.read = now
	for _, r := range p.all {
		if !r.dead && r.next <= now {
			r.Scraped(now, metrics)
			r.next = now + r.Interval()
		}
	}
}
