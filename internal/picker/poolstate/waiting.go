package poolstate

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/admission"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// A call waits at the picker while no endpoint would begin with it soon, and goes when one would. At a server it could not be
// overtaken any more, and its endpoint was chosen long before. All functions here without a comment on the mutex need it.

const (
	// planned bounds the calls that are planned when an endpoint can begin with one, and plannedOfOne those of one caller.
	planned, plannedOfOne = 64, 16
	// leastRoom is what the calls that wait for a pool may take of memory in any case, in bytes, whatever other pools of its namespace do.
	leastRoom = 128 << 10
	// patrolEvery is how often the line is looked through for calls that have waited too long.
	patrolEvery = 250 * time.Millisecond
	// soonest and latest bound the time until the line is looked at again.
	soonest, latest = time.Millisecond, 100 * time.Millisecond
	// learnedWithin is how long it may take the proxy to learn of the first endpoint of a pool that had none. It then has no endpoint to
	// fall back on.
	learnedWithin = 3 * time.Second
	// leastRetry and mostRetry bound the time after which refused callers are told to try again.
	leastRetry, mostRetry = time.Second, time.Minute
)

// ruleOf returns what a call gets, whose it is, and of which tenant, which is a namespace. A caller's identity is a SPIFFE ID:
// spiffe://<trust domain>/ns/<namespace>/sa/<account>. Of any other only the rule for all callers counts.
func (p *Pool) ruleOf(c *Call) (rule picksettings.Caller, flow, tenant string) {
	tenant, namespace, account := accountOf(c.Caller)
	rule, flow = p.waits.callers.Of(namespace, account), c.Caller
	if !p.TrustsCallers() {
		return rule, flow, tenant
	}
	if c.Behalf != "" {
		flow, tenant = c.Behalf, c.Behalf
	}
	if priority, known := p.waits.objectives[c.Objective]; known {
		rule.Priority = priority
	}
	return rule, flow, tenant
}

// accountOf returns the tenant of an identity, which is a namespace of a trust domain, and the bare names of namespace and service account.
// An identity of another form is a tenant of its own.
func accountOf(identity string) (tenant, namespace, account string) {
	parts := strings.Split(identity, "/")
	if len(parts) == 7 && parts[0] == "spiffe:" && parts[1] == "" && parts[3] == "ns" && parts[5] == "sa" && parts[4] != "" && parts[6] != "" {
		return parts[2] + "/" + parts[4], parts[4], parts[6]
	}
	return identity, "", ""
}

// waits is what a pool has of calls that wait.
type waits struct {
	line    admission.Line
	by      map[*admission.Call]*Waiting
	room    *fairshare.Share // bytes
	callers picksettings.Callers
	// objectives are the priorities of the pool's InferenceObjectives.
	objectives map[string]int
	outputs    outputs
	demand     recentCalls // tokens to prefill of the calls that came, also of those that are refused
	bytes      int64       // of the calls that wait
	watched    bool        // the line will be looked at again
	patrolled  time.Duration
	open       bool // no call waits any more, as the picker is about to end
	// asleep says that calls came while the pool had no endpoint. wakes is the time from which on they go to one that has come.
	asleep bool
	wakes  time.Duration
}

// Waiting is a call that waits.
type Waiting struct {
	place   admission.Call
	pool    *Pool
	call    *Call
	r       *Reservation
	decided chan struct{} // closed once made is there
	made    made
}

// Held reports whether the call still waits. The pool's mutex must not be held.
func (w *Waiting) Held() bool {
	select {
	case <-w.decided:
		return false
	default:
		return true
	}
}

// Wait waits until the call is decided on, and returns what Pick would. If the context ends before, the call leaves the line. The pool's
// mutex must not be held.
func (w *Waiting) Wait(ctx context.Context) (*Decision, error) {
	select {
	case <-w.decided:
	case <-ctx.Done():
		if w.pool.abandon(w) {
			return nil, ctx.Err()
		}
		<-w.decided
	}
	return w.pool.finish(w.call, w.r, w.made)
}

// abandon takes a call whose caller has gone out of the line. It reports whether the call waited. The pool's mutex must not be held.
func (p *Pool) abandon(w *Waiting) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.place.Waits() {
		return false
	}
	p.waits.line.Remove(&w.place)
	p.leftLine(w)
	return true
}

// Ask is Pick for a call that may wait. If w is not nil, the call was put into the line: w tells what becomes of it, and until then c and
// r belong to the pool. The pool's mutex must not be held.
func (p *Pool) Ask(c *Call, r *Reservation) (why *Decision, w *Waiting, err error) {
	m, w := p.ask(c, r)
	if w != nil {
		return nil, w, nil
	}
	why, err = p.finish(c, r, m)
	return why, nil, err
}

func (p *Pool) ask(c *Call, r *Reservation) (made, *Waiting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	p.arrived(now)
	ranked, err := p.consider(c, now)
	switch {
	case errors.Is(err, p.noEndpoints) && p.settings.Load().EndpointsWithin > 0 && !p.waits.open:
		p.waits.asleep = true
		w, err := p.wait(c, r, p.choice.Work(c.Facts.PromptTokens()), now)
		return made{at: now, err: err}, w
	case err != nil:
		return made{at: now, err: err}, nil
	}
	p.demand(now)
	if p.goes(c, now) {
		return p.commit(c, r, &ranked, now), nil
	}
	w, err := p.wait(c, r, p.choices[0].Work, now)
	return made{at: now, err: err}, w
}

// goes reports whether a call, whose endpoints are ranked, goes at once.
func (p *Pool) goes(c *Call, now time.Duration) bool {
	return c.Subset.Given || p.settings.Load().Patience == 0 || p.waits.open || p.waits.line.Len() == 0 && p.goesNow(p.soonFor(c), now)
}

// goesNow reports whether a call goes that comes to an empty line: to an endpoint that would begin with it within a time, or to one that is
// worth the wait there although another is idle. Where none is idle, it is worth more to choose later.
func (p *Pool) goesNow(within, now time.Duration) bool {
	return p.begins(within, now) || now >= p.waits.wakes && p.choice.Idle(p.snapshot.Load().numbers, now, within)
}

// wouldWait returns how long a call, whose endpoints are ranked, would wait.
func (p *Pool) wouldWait(c *Call, now time.Duration) time.Duration {
	if p.goes(c, now) {
		return 0
	}
	p.waits.line.Tick(now, p.choice.MeanTokens())
	place, _ := p.place(c, p.choices[0].Work)
	return p.expect(&place, now)
}

// begins reports whether the endpoint that was ranked first would begin with the call within a time.
func (p *Pool) begins(within, now time.Duration) bool {
	first := &p.choices[0]
	return now >= p.waits.wakes && p.choice.Begins(first.Endpoint, now, float64(first.Uncached)) <= within
}

// woken notes that a pool whose calls wait for an endpoint has one. Until the proxy knows it, they wait on.
func (p *Pool) woken(now time.Duration) {
	if p.waits.asleep {
		p.waits.asleep, p.waits.wakes = false, now+learnedWithin
		p.extend(p.waits.wakes + p.settings.Load().Patience)
	}
}

// fallAsleep notes that the pool has no endpoint any more.
func (p *Pool) fallAsleep(now time.Duration) {
	p.waits.asleep = p.waits.line.Len() > 0
	p.extend(now + p.settings.Load().EndpointsWithin)
}

// extend lets the calls of the line wait until a time at least, as far as their proxies do.
func (p *Pool) extend(until time.Duration) {
	for c, w := range p.waits.by {
		c.Until = max(c.Until, until)
		if w.call.MostWait > 0 {
			c.Until = min(c.Until, c.At+w.call.MostWait)
		}
	}
}

// nextToBegin returns how long the first endpoint takes until it would begin with the shortest call. Those that would begin within a time
// do not count, nor those that fail, unless all do.
func (p *Pool) nextToBegin(now, after time.Duration) time.Duration {
	if now < p.waits.wakes {
		return p.waits.wakes - now + p.choice.Soon()
	}
	const never = time.Duration(math.MaxInt64)
	next, failing, well := never, never, false
	for _, n := range p.snapshot.Load().numbers {
		of := &next
		if p.choice.Fails(n, now) {
			of = &failing
		} else {
			well = true
		}
		if begins := p.choice.Begins(n, now, 1); begins > after {
			*of = min(*of, begins)
		}
	}
	if well {
		return next
	}
	return failing
}

// none makes nextToBegin count all endpoints.
const none = -1

// patience returns how long a call may wait: for a server or, where the pool has no endpoint, for one.
func (p *Pool) patience(c *Call) time.Duration {
	s := p.settings.Load()
	patience := s.Patience
	if len(p.snapshot.Load().numbers) == 0 {
		patience = s.EndpointsWithin
	}
	if c.MostWait > 0 {
		patience = min(patience, c.MostWait)
	}
	return patience
}

// place returns what a call is to the line, and what its caller gets. work is what its best endpoint has to prefill.
func (p *Pool) place(c *Call, work float64) (admission.Call, picksettings.Caller) {
	rule, flow, tenant := p.ruleOf(c)
	work = p.workIn(c, work)
	return admission.Call{
		Flow: flow, Tenant: tenant, Weight: rule.Weight, Priority: rule.Priority,
		Work: work, Cost: work + outputCost*p.waits.outputs.mean(), Bytes: c.Bytes,
	}, rule
}

// workIn is a call's work in the line: a body that was not read may be new to all endpoints.
func (p *Pool) workIn(c *Call, work float64) float64 { return max(1, work, p.choice.Work(c.Unread)) }

// wait puts a call into the line, or refuses it.
func (p *Pool) wait(c *Call, r *Reservation, work float64, now time.Duration) (*Waiting, error) {
	patience := p.patience(c)
	w := &Waiting{pool: p, call: c, r: r, decided: make(chan struct{})}
	var rule picksettings.Caller
	w.place, rule = p.place(c, work)
	w.place.At, w.place.Until = now, max(now, p.waits.wakes)+patience
	p.waits.line.Tick(now, p.choice.MeanTokens())
	if err := p.refuses(w, rule, patience, now); err != nil {
		return nil, err
	}
	p.waits.bytes += c.Bytes
	p.waits.line.Add(&w.place)
	p.waits.by[&w.place] = w
	p.letGo(now)
	p.watch(now)
	return w, nil
}

// refuses returns the refusal of a call that may not wait; else it has made room for the call.
func (p *Pool) refuses(w *Waiting, rule picksettings.Caller, patience, now time.Duration) error {
	line, c := &p.waits.line, &w.place
	switch {
	case rule.Waiting > 0 && line.Waiting(c) >= rule.Waiting:
		return p.refusal(refusal.LineFull, now, "as many calls of this caller wait for pool %s as may", p.name)
	case c.Priority < 0 && line.Above(0):
		return p.refusal(refusal.Shed, now, "calls of a higher priority wait for pool %s", p.name)
	}
	if late := p.tooLate(w, patience, now); late > 0 {
		e := refusal.New(refusal.TooLate, "pool %s has more calls than it can serve: this one would wait too long", p.name)
		e.RetryAfter = retryAfter(late)
		return e
	}
	for !p.waits.room.Take(c.Bytes) && p.waits.bytes+c.Bytes > leastRoom {
		p.waits.room.Give(c.Bytes)
		last := line.Last()
		if last == nil || last.Priority > c.Priority || last.Priority == c.Priority && line.Bytes(c)+float64(c.Bytes)/c.Weight >= line.Bytes(last) {
			return p.refusal(refusal.LineFull, now, "as many calls wait for the pools of namespace %s as may", p.name.Namespace)
		}
		p.decide(p.waits.by[last], p.refusal(refusal.LineFull, now, "the call had to make room in the line for pool %s", p.name))
	}
	return nil
}

// tooLate returns by how much a call would begin too late; 0 where it would not, or where servers' speeds are not known.
func (p *Pool) tooLate(w *Waiting, patience, now time.Duration) time.Duration {
	if !p.choice.SpeedKnown() {
		return 0
	}
	wait := p.expect(&w.place, now)
	late := wait - patience
	if want := w.call.FirstTokenWithin; want > 0 {
		late = max(late, wait+time.Duration(w.place.Work/p.choice.MeanRate()*float64(time.Second))-want)
	}
	return max(0, late)
}

// expect returns how long a call would wait that comes now.
func (p *Pool) expect(c *admission.Call, now time.Duration) time.Duration {
	all := p.speed(now)
	if all == 0 {
		return 0
	}
	return p.nextToBegin(now, none) + p.waits.line.Forecast(c, all)
}

// refusal makes the refusal of a call that could be served when what waits now has been.
func (p *Pool) refusal(reason refusal.Reason, now time.Duration, format string, args ...any) *refusal.Error {
	e := refusal.New(reason, format, args...)
	e.RetryAfter = leastRetry
	if all := p.speed(now); all > 0 {
		e.RetryAfter = retryAfter(p.nextToBegin(now, none) + time.Duration(p.waits.line.Work()/all*float64(time.Second)))
	}
	return e
}

// speed returns how many tokens a second the endpoints that do not fail prefill together for this picker's calls: where several pickers pick,
// its part of them.
func (p *Pool) speed(now time.Duration) (all float64) {
	for _, n := range p.snapshot.Load().numbers {
		if !p.choice.Fails(n, now) {
			all += p.choice.Rate(n)
		}
	}
	return all * p.ownPart()
}

// ownPart is the part of the pool's calls that this picker has, 0 to 1.
func (p *Pool) ownPart() float64 {
	if len(p.sharers) < 2 {
		return 1
	}
	sum := 0.0
	for _, s := range p.sharers {
		sum += s.Calls
	}
	return max(p.sharers[0].Calls, 1) / max(sum, 1)
}

func retryAfter(d time.Duration) time.Duration { return min(max(d, leastRetry), mostRetry) }

// unheld reports whether no call waits any more: those that still do are let go.
func (p *Pool) unheld() bool { return p.waits.open || p.patience(&Call{}) == 0 }

// letGo lets the calls go with which an endpoint would begin soon. Where no call waits any more it lets go a part of them.
func (p *Pool) letGo(now time.Duration) {
	if p.unheld() {
		p.letSomeGo(now)
		return
	}
	members := p.snapshot.Load().numbers
	for p.waits.line.Len() > 0 && len(members) > 0 {
		p.choice.Age(now, members)
		if p.nextToBegin(now, none) > p.soon() {
			return
		}
		p.waits.line.Tick(now, p.choice.MeanTokens())
		if !p.sendNext(now) {
			return
		}
	}
}

// lowSoon is how soon an endpoint must begin with a call of a negative priority, as a multiple of the time for others. A call that comes
// next should not find it in its way. Of a flood of such calls beside others in a simulated fleet, this made the 90th percentile of the
// others' times to first token 0.9 times as long, and took 2 % of the flood's work.
const lowSoon = 0.1

// soon returns how soon an endpoint must begin with the next call of the line.
func (p *Pool) soon() time.Duration { return p.soonAt(!p.waits.line.Above(0)) }

// soonFor returns how soon an endpoint must begin with a call.
func (p *Pool) soonFor(c *Call) time.Duration {
	low := false
	if len(p.waits.callers) > 0 || len(p.waits.objectives) > 0 {
		rule, _, _ := p.ruleOf(c)
		low = rule.Priority < 0
	}
	return p.soonAt(low)
}

func (p *Pool) soonAt(low bool) time.Duration {
	if low {
		return time.Duration(lowSoon * float64(p.choice.Soon()))
	}
	return p.choice.Soon()
}

// goneAtOnce is how many calls go at once when no call waits any more: each takes some 10 µs, in which no other call is picked.
const goneAtOnce = 64

// letSomeGo lets some calls go, whatever waits for them.
func (p *Pool) letSomeGo(now time.Duration) {
	for range goneAtOnce {
		var next *Waiting
		if p.waits.line.Next(1, func(c *admission.Call) bool { next = p.waits.by[c]; return false }); next == nil {
			return
		}
		p.send(next, now)
	}
}

// sendNext sends the call that goes next, and reports whether one does: none where each waits for an endpoint that is worth the wait. It
// plans the next calls of the line, as if all went now, and takes the first that goes to an endpoint which would begin soon. Calls that
// only an endpoint with a longer queue is good for do not keep others from the idle ones.
func (p *Pool) sendNext(now time.Duration) bool {
	soon := p.soon()
	var next *Waiting
	var ranked ranking
	var err error
	var works []reworked
	tried := 0
	p.waits.line.Next(plannedOfOne, func(c *admission.Call) bool {
		w := p.waits.by[c]
		if ranked, err = p.consider(w.call, now); err != nil || p.begins(soon, now) {
			next = w
			return false
		}
		best := &p.choices[0]
		if work := p.workIn(w.call, best.Work); work != c.Work {
			works = append(works, reworked{c, work})
		}
		p.choice.Suppose(best.Endpoint, now, best.Work)
		tried++
		return tried < planned
	})
	p.choice.Unsuppose()
	for _, r := range works { // what is cached changes while calls wait
		p.waits.line.Change(r.call, r.work)
	}
	if next != nil {
		p.commitWaiting(next, &ranked, err, now)
	}
	return next != nil
}

// reworked is what a call of the line brings now.
type reworked struct {
	call *admission.Call
	work float64
}

// send picks for a call of the line.
func (p *Pool) send(w *Waiting, now time.Duration) {
	ranked, err := p.consider(w.call, now)
	p.commitWaiting(w, &ranked, err, now)
}

// commitWaiting reserves the first of the endpoints that were ranked last, for a call of the line, or refuses the call.
func (p *Pool) commitWaiting(w *Waiting, ranked *ranking, err error, now time.Duration) {
	if err != nil {
		p.decide(w, err)
		return
	}
	w.made = p.commit(w.call, w.r, ranked, now)
	w.r.waited = p.waits.line.Serve(&w.place)
	p.metrics.Waited(now - w.place.At)
	p.leftLine(w)
	close(w.decided)
}

// decide refuses a call of the line.
func (p *Pool) decide(w *Waiting, err error) {
	p.waits.line.Remove(&w.place)
	w.made = made{err: err}
	p.leftLine(w)
	close(w.decided)
}

// leftLine notes that a call has left the line.
func (p *Pool) leftLine(w *Waiting) {
	delete(p.waits.by, &w.place)
	p.waits.room.Give(w.place.Bytes)
	p.waits.bytes -= w.place.Bytes
	p.choice.Waiting(p.waits.line.Work())
	p.metrics.SetWaiting(p.waits.line.Len())
}

// watch has the line looked at when the next endpoint can begin with a call.
func (p *Pool) watch(now time.Duration) {
	p.choice.Waiting(p.waits.line.Work())
	p.metrics.SetWaiting(p.waits.line.Len())
	if p.waits.watched || p.waits.line.Len() == 0 {
		return
	}
	p.waits.watched = true
	p.after(p.nextLook(now), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		now := p.clock()
		p.waits.watched = false
		p.letGo(now)
		if now-p.waits.patrolled >= patrolEvery {
			p.waits.patrolled = now
			p.patrol(now)
		}
		p.watch(now)
	})
}

// nextLook returns after which time the line is to be looked at again, if nothing happens before.
func (p *Pool) nextLook(now time.Duration) time.Duration {
	if p.unheld() {
		return soonest
	}
	soon := p.soon() // who begins earlier had its chance now
	return min(max(p.nextToBegin(now, soon)-soon, soonest), latest)
}

// patrol refuses the calls that have waited too long.
func (p *Pool) patrol(now time.Duration) {
	var late []*Waiting
	p.waits.line.Each(func(c *admission.Call) {
		if c.Until < now {
			late = append(late, p.waits.by[c])
		}
	})
	for _, w := range late {
		if len(p.snapshot.Load().numbers) == 0 {
			p.decide(w, p.noEndpoints)
			continue
		}
		p.decide(w, p.refusal(refusal.TooLate, now, "pool %s has more calls than it can serve: this one has waited for %s", p.name, (now-w.place.At).Round(time.Second)))
	}
}

// reclass gives the waiting calls what the settings say now.
func (p *Pool) reclass() {
	p.waits.callers, _ = picksettings.ParseCallers(p.settings.Load().Callers) // a setting is valid or empty
	for c, w := range p.waits.by {
		rule, _, _ := p.ruleOf(w.call)
		p.waits.line.Reclass(c, rule.Weight, rule.Priority)
		c.Until = max(c.At, p.waits.wakes) + p.patience(w.call)
	}
	p.letGo(p.clock())
}

// setObjectives replaces the priorities of the pool's objectives. The mutex must not be held.
func (p *Pool) setObjectives(objectives map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waits.objectives = objectives
	p.reclass()
}

// charge counts what a call that waited has cost beside what was expected.
func (p *Pool) charge(r *Reservation, outcome Outcome, now time.Duration) {
	if outcome != Answered && outcome != Ended {
		return
	}
	expected := p.waits.outputs.mean()
	got := p.waits.outputs.of(now, max(0, (now-p.choice.Due(&r.claim)).Seconds()))
	p.waits.line.Charge(r.waited, outputCost*(got-expected))
}

// LetGo ends all waiting, at the end of a drain: calls that wait go at once, and none waits any more.
func (f *Fleet) LetGo() {
	for _, p := range *f.pools.Load() {
		for left := 1; left > 0; {
			p.mu.Lock()
			p.waits.open = true
			p.letSomeGo(p.clock())
			left = p.waits.line.Len()
			p.mu.Unlock()
		}
	}
}
