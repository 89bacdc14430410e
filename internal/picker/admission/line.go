// Package admission holds the calls of one pool that wait at the picker until a server would begin with them soon: in which
// order they go, who is next, how long another one would wait, and who must make room. It must not know endpoints, prompts,
// streams, locks or clocks.
//
// # The order
//
// Calls of a higher priority go first.
//
// Among calls of one priority, tenants get what calls cost by their weights, with virtual token counters (Sheng et al.,
// Fairness in Serving Large Language Models, OSDI 2024): the tenant whose calls have cost the least for its weight is next. One
// that had nothing waiting gets no credit for that time. Within a tenant its callers share in the same way, so that a tenant gets no more
// by calling under many names.
//
// Among the calls of one caller, the one that brings the least work goes first. Waiting counts as less work, so that a long call is
// overtaken by shorter ones for a limited time. On an hour of a real trace at twice
// the speed that 8 servers can serve, this made the mean time to first token less than a third of that in the order of arrival, with as
// much served.
package admission

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"time"
)

// Overtaken is the time of waiting that counts as a mean call's work less. So calls of twice the mean are overtaken by mean ones for a
// minute, and by the shortest for two. With less, calls of an overloaded pool all wait until shortly before they are refused: of twice
// what simulated servers can do, the mean time to first token was 12 s with 15 s, 5 s with 30 s, and 3 s with a minute.
const Overtaken = time.Minute

// Bounds of what is told apart: the tenants of one priority, and the callers of one tenant. Further ones share what one gets.
const (
	mostTenants = 1024
	mostFlows   = 256
)

// rest is the tenant, or the caller, of those that are not told apart.
const rest = "…"

// Call is a call that waits.
type Call struct {
	// Flow is the caller, and Tenant whose caller it is. Weight is the caller's part of what calls cost beside other callers' parts, more
	// than 0. A tenant has the weight of that of its callers which waits last.
	Flow, Tenant string
	Weight       float64
	// Priority is the call's.
	Priority int
	// Work is what a server must prefill for the call, in tokens. Cost is what the call is expected to cost the servers in all, in
	// the same unit.
	Work, Cost float64
	// Bytes is what the call takes of the picker's memory.
	Bytes int64
	// At is when the call came, and Until up to when it may wait, both on the pool's clock.
	At, Until time.Duration

	key    float64
	number uint64
	flow   *flow // nil while the call does not wait
}

// Waits reports whether the call waits.
func (c *Call) Waits() bool { return c.flow != nil }

// Line holds the calls that wait. Its user must serialise its methods.
type Line struct {
	levels []*level // the highest priority first
	calls  int
	work   float64
	number uint64 // calls so far

	// aged is for how much work the time up to at has counted, in tokens. It is a sum, as servers' speed changes.
	aged   float64
	at     time.Duration
	ageing float64 // for how much work a second counts now
}

// level is one priority.
type level struct {
	priority int
	tenants  members[*tenant]
	came     arrivals
}

// tenant is one tenant's calls of one priority.
type tenant struct {
	account
	flows members[*flow]
	bytes int64
	work  float64
	came  arrivals
}

// flow is one caller's calls of one priority.
type flow struct {
	account
	level  *level
	tenant *tenant
	bytes  int64
	calls  order
}

// account is what somebody has had of the servers.
type account struct {
	name   string
	weight float64
	had    float64 // what the calls cost, divided by the weight
	waits  bool    // has calls that wait
}

func (a *account) of() *account { return a }

// members are those who share something.
type members[T interface{ of() *account }] struct {
	all     map[string]T
	waiting []T     // those with calls that wait, in no order
	virtual float64 // what the one had whose call was served last
}

// get returns a member, and makes it if it does not exist. Where there are too many, it is the one of those that are not told apart.
func (m *members[T]) get(name string, most int, made func(account) T) T {
	if known, ok := m.all[name]; ok {
		return known
	}
	if m.all == nil {
		m.all = map[string]T{}
	}
	if len(m.all) >= most && name != rest {
		m.forget()
		if len(m.all) >= most {
			return m.get(rest, most, made)
		}
	}
	t := made(account{name: name, weight: 1, had: m.virtual})
	m.all[name] = t
	return t
}

// forget drops members that wait for nothing and have had no more than a new one is taken to have had.
func (m *members[T]) forget() {
	for name, t := range m.all {
		if a := t.of(); a.had <= m.virtual && !a.waits {
			delete(m.all, name)
		}
	}
}

// waits notes that a member has a call that waits.
func (m *members[T]) waits(t T) {
	a := t.of()
	a.had, a.waits = max(a.had, m.virtual), true
	m.waiting = append(m.waiting, t)
}

// rests notes that a member has no call any more that waits.
func (m *members[T]) rests(t T) {
	i := slices.IndexFunc(m.waiting, func(w T) bool { return w.of() == t.of() })
	last := len(m.waiting) - 1
	m.waiting[i] = m.waiting[last]
	clear(m.waiting[last:])
	m.waiting = m.waiting[:last]
	t.of().waits = false
	if last == 0 {
		m.forget()
	}
}

// first compares two members by what they have had: the one with less is next.
func first[T interface{ of() *account }](a, b T) int {
	return cmp.Or(cmp.Compare(a.of().had, b.of().had), strings.Compare(a.of().name, b.of().name))
}

// mostHad is what members may have had before all counts are set back, so that small costs still count in them.
const mostHad = 1e12

// serve counts what a member's call costs.
func (m *members[T]) serve(t T, cost float64) {
	a := t.of()
	m.virtual = max(m.virtual, a.had)
	a.had += cost / a.weight
	if m.virtual > mostHad {
		for _, t := range m.all {
			t.of().had = max(0, t.of().had-m.virtual)
		}
		m.virtual = 0
	}
}

// Len is the number of waiting calls.
func (l *Line) Len() int { return l.calls }

// Work is the work that the waiting calls bring, in tokens.
func (l *Line) Work() float64 { return l.work }

// Tick tells the line the time, and what the calls of its pool bring on average, in tokens.
func (l *Line) Tick(now time.Duration, mean float64) {
	l.ageing = mean / Overtaken.Seconds()
	l.aged += l.ageing * max(0, now-l.at).Seconds()
	l.at = max(l.at, now)
}

// Add adds a call that came at the time of the last Tick.
func (l *Line) Add(c *Call) {
	f := l.join(c)
	l.number++
	c.number, c.key = l.number, c.Work+l.aged
	f.calls.add(c)
	f.tenant.came.add(l.at, c.Work)
	f.level.came.add(l.at, c.Work)
}

// join counts a call as one of its caller's that wait, and returns the caller.
func (l *Line) join(c *Call) *flow {
	v := l.level(c.Priority)
	t := v.tenants.get(c.Tenant, mostTenants, func(a account) *tenant { return &tenant{account: a} })
	f := t.flows.get(c.Flow, mostFlows, func(a account) *flow { return &flow{account: a, level: v, tenant: t} })
	if len(t.flows.waiting) == 0 {
		v.tenants.waits(t)
	}
	if f.calls.calls == 0 {
		t.flows.waits(f)
	}
	f.weight, t.weight = c.Weight, c.Weight
	f.bytes += c.Bytes
	t.bytes += c.Bytes
	t.work += c.Work
	c.flow = f
	l.calls++
	l.work += c.Work
	return f
}

// Remove takes a call out that is not served. Of a call that does not wait it does nothing.
func (l *Line) Remove(c *Call) {
	f := c.flow
	if f == nil {
		return
	}
	t := f.tenant
	f.calls.remove(c)
	f.bytes -= c.Bytes
	t.bytes -= c.Bytes
	t.work -= c.Work
	c.flow = nil
	l.calls--
	l.work -= c.Work
	if l.calls == 0 {
		l.work = 0 // without what rounding left
	}
	if f.calls.calls > 0 {
		return
	}
	t.flows.rests(f)
	if len(t.flows.waiting) == 0 {
		t.work = 0
		f.level.tenants.rests(t)
	}
}

// Served is a call that was served: whose it was, and by which weights it counted.
type Served struct {
	tenant, flow             string
	priority                 int
	tenantWeight, flowWeight float64
}

// Serve takes a call out, and counts what it costs as its caller's and its tenant's.
func (l *Line) Serve(c *Call) Served {
	f := c.flow
	if f == nil {
		return Served{}
	}
	t := f.tenant
	out := Served{tenant: t.name, flow: f.name, priority: f.level.priority, tenantWeight: t.weight, flowWeight: f.weight}
	f.level.tenants.serve(t, c.Cost)
	t.flows.serve(f, c.Cost)
	l.Remove(c)
	return out
}

// Charge counts what a served call cost beside what was expected, which may be negative.
func (l *Line) Charge(s Served, cost float64) {
	for _, v := range l.levels {
		t := v.tenants.all[s.tenant]
		if v.priority != s.priority || t == nil {
			continue
		}
		t.had = max(0, t.had+cost/s.tenantWeight)
		if f := t.flows.all[s.flow]; f != nil {
			f.had = max(0, f.had+cost/s.flowWeight)
		}
	}
}

// Change changes the work of a waiting call.
func (l *Line) Change(c *Call, work float64) {
	f := c.flow
	f.calls.remove(c)
	l.work += work - c.Work
	f.tenant.work += work - c.Work
	c.key += work - c.Work
	c.Cost += work - c.Work
	c.Work = work
	f.calls.add(c)
}

// Reclass gives a waiting call another weight and priority, and leaves it its age.
func (l *Line) Reclass(c *Call, weight float64, priority int) {
	if c.Weight == weight && c.Priority == priority {
		return
	}
	key := c.key
	l.Remove(c)
	c.Weight, c.Priority = weight, priority
	f := l.join(c)
	c.key = key
	f.calls.add(c)
}

// Next calls a function with so many calls of each caller at most, until it returns false: those of the caller first whose turn it is, in
// their order, then those of the other callers, in the order in which they would be next if nothing was served.
func (l *Line) Next(most int, f func(*Call) bool) {
	more := true
	for _, v := range l.levels {
		for t := range inTurn(v.tenants.waiting) {
			for w := range inTurn(t.flows.waiting) {
				n := 0
				if w.calls.each(func(c *Call) bool { n++; more = f(c); return more && n < most }); !more {
					return
				}
			}
		}
	}
}

// inTurn yields members in the order in which they are next. Mostly only the first is wanted.
func inTurn[T interface{ of() *account }](waiting []T) iter.Seq[T] {
	return func(yield func(T) bool) {
		if len(waiting) == 0 {
			return
		}
		least := slices.MinFunc(waiting, first[T])
		if !yield(least) || len(waiting) == 1 {
			return
		}
		for _, t := range slices.SortedFunc(slices.Values(waiting), first[T])[1:] {
			if !yield(t) {
				return
			}
		}
	}
}

// flows yields the callers with calls that wait, in no order.
func (l *Line) flows(yield func(*flow) bool) {
	for _, v := range l.levels {
		for _, t := range v.tenants.waiting {
			for _, f := range t.flows.waiting {
				if !yield(f) {
					return
				}
			}
		}
	}
}

// Each calls a function with all calls. It must not change the line.
func (l *Line) Each(f func(*Call)) {
	for w := range l.flows {
		w.calls.each(func(c *Call) bool { f(c); return true })
	}
}

// Caller is a caller with calls that wait.
type Caller struct {
	Flow     string
	Priority int
	Weight   float64
	Calls    int
	// At is when the first of its calls came.
	At time.Duration
}

// Callers lists the callers with calls that wait, those with the most first.
func (l *Line) Callers() []Caller {
	var out []Caller
	for f := range l.flows {
		c := Caller{Flow: f.name, Priority: f.level.priority, Weight: f.weight, Calls: f.calls.calls, At: l.at}
		f.calls.each(func(x *Call) bool { c.At = min(c.At, x.At); return true })
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(a, b Caller) int { return cmp.Compare(b.Calls, a.Calls) })
	return out
}

// find returns the caller of a call, and its tenant; nil where they have no calls.
func (l *Line) find(c *Call) (*tenant, *flow) {
	for _, v := range l.levels {
		if v.priority != c.Priority {
			continue
		}
		if t := v.tenants.all[c.Tenant]; t != nil {
			return t, t.flows.all[c.Flow]
		}
	}
	return nil, nil
}

// Waiting is how many calls of a caller wait, of the priority of the call.
func (l *Line) Waiting(c *Call) int {
	if _, f := l.find(c); f != nil {
		return f.calls.calls
	}
	return 0
}

// Bytes is what the waiting calls of a call's tenant take of memory, divided by the tenant's weight.
func (l *Line) Bytes(c *Call) float64 {
	if t, _ := l.find(c); t != nil {
		return float64(t.bytes) / t.weight
	}
	return 0
}

// Above reports whether calls of at least this priority wait.
func (l *Line) Above(priority int) bool {
	return slices.ContainsFunc(l.levels, func(v *level) bool { return v.priority >= priority && len(v.tenants.waiting) > 0 })
}

// Last returns the call that makes room for others: of the lowest priority, of the tenant there that takes most of the memory for its weight,
// and of the caller of that tenant which does, the last one. It is nil where none waits.
func (l *Line) Last() *Call {
	for _, v := range slices.Backward(l.levels) {
		if len(v.tenants.waiting) == 0 {
			continue
		}
		t := slices.MaxFunc(v.tenants.waiting, func(a, b *tenant) int {
			return cmp.Compare(float64(a.bytes)/a.weight, float64(b.bytes)/b.weight)
		})
		return slices.MaxFunc(t.flows.waiting, func(a, b *flow) int {
			return cmp.Compare(float64(a.bytes)/a.weight, float64(b.bytes)/b.weight)
		}).calls.last()
	}
	return nil
}

// level returns the level of a priority, and makes it if it does not exist.
func (l *Line) level(priority int) *level {
	i, found := slices.BinarySearchFunc(l.levels, priority, func(v *level, priority int) int { return cmp.Compare(priority, v.priority) })
	if !found {
		l.levels = slices.Insert(l.levels, i, &level{priority: priority})
	}
	return l.levels[i]
}
