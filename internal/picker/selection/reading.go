package selection

import (
	"math"
	"slices"
	"time"
)

// Reading is what one endpoint reported of itself at one time.
type Reading struct {
	// At is when the endpoint was read, on the pool's clock.
	At time.Duration
	// Running and Waiting are the calls that the server works on and the calls in its queue, which it has not begun.
	Running, Waiting int
	// Deferred are the calls that wait for something else than their turn, such as an adapter's slot. WaitingSplit says that
	// the server tells them apart; where it does not, they are among the waiting ones.
	Deferred     int
	WaitingSplit bool
	// KVUsage is the share of the KV cache that running calls use, 0 to 1; negative or NaN where it is not reported.
	KVUsage float64
	// KVTokens is how many tokens the KV cache holds; 0 where it is not reported.
	KVTokens int
	// Model is the name of the endpoint's base model; empty where it is not reported.
	Model string
	// MaxAdapters is the number of LoRA adapters that can be resident; 0 where the endpoint reports none.
	MaxAdapters int
	// RunningAdapters and WaitingAdapters are the adapters of running and of waiting calls, in any order, repeats allowed.
	RunningAdapters, WaitingAdapters []string
	// Told says that another picker told of the calls in flight. When they began is not known well enough to show a speed.
	Told bool
	Counters
}

// lastReading is what is kept of an endpoint's last reading.
type lastReading struct {
	at      float64 // seconds of the clock; -Inf where there was none
	foreign float64 // calls that are not the picker's own
	behind  float64 // waiting foreign calls for each waiting call of the picker's own
	ran     float64 // running foreign calls
	room    float64 // KV cache head-room in tokens, +Inf where it is not reported
	waiting float64 // the position of the picker's first waiting call; +Inf where none waited
	begun   begun
}

// noReading stands for the last reading of an endpoint without one.
func noReading() lastReading {
	return lastReading{at: math.Inf(-1), waiting: math.Inf(1), begun: begun{position: -1}}
}

// begun is a call whose prefill is known to have begun at a time: when the call came, if nothing was ahead of it, or
// else between the reading that showed it waiting and the next.
type begun struct {
	position, at float64
	// busy says that calls waited behind it, so that the endpoint prefilled without a pause until the next one began.
	busy bool
}

const (
	// step is longer than a server's step that only decodes, in seconds: a call that waits longer waits for prefill.
	step = 0.1
	// fresh is the age up to which a reading counts fully, and fade the time over which it then loses its weight, both in
	// seconds. Each is three times the usual longest interval between scrapes.
	fresh, fade = 3, 3
	// refreshEvery is the interval, in seconds, at which the weights of readings are adjusted to their ages.
	refreshEvery = 0.25
	// mostElapsed is the time before a reading, in seconds, in which first tokens count as recent.
	mostElapsed = 2
	// shortOfMemory is the free share of the KV cache above which its head-room is taken for unlimited.
	shortOfMemory = 0.5
)

// Observe takes a reading of endpoint n. A reading that is older than the last, or impossible, changes nothing. Observe
// returns what the reading shows of the times that were expected.
func (s *State) Observe(n int32, now time.Duration, r *Reading) FirstTokens {
	at, t := min(r.At, now).Seconds(), now.Seconds()
	l := &s.loads[n]
	if at <= l.reading.at || r.Running < 0 || r.Waiting < 0 || r.Deferred < 0 {
		return FirstTokens{}
	}
	last := l.reading.at
	// 1. Adapters, which tell the deferred calls.
	s.adapters.observe(n, t, at, r)
	// 2. Which of the endpoint's calls are the picker's own, and which of the own calls wait. Deferred ones are in no queue.
	arrived := l.arrivedBy(at)
	queue := s.queued(n, arrived, r)
	foreign := max(0, float64(r.Running)+float64(r.Waiting)-float64(len(queue)))
	waiting := l.ownWaiting(at, r.Waiting, queue, foreign)
	others := float64(r.Waiting - waiting)
	// 3. How fast the server prefills, by the first tokens since the last reading or, where it does not count them, by its
	// queue. While calls are deferred, the order of arrival is not that of prefill.
	begun := l.begun(at, queue, waiting)
	begun.busy = begun.busy && r.Deferred == 0
	ratio, followed, prompts := s.TokenRatio(n), l.first.known, l.first.last.Prompts
	prefilled := l.first.see(at, r, queue, l.strangers(at, foreign), ratio)
	if prefilled.calls > 0 && r.Prefilled > 0 {
		l.others.count(t, prefilled.calls, prefilled.computed, float64(r.KVTokens)/ratio)
	}
	if followed && l.first.known && r.Prompts > 0 {
		l.ratio.observe(t, prefilled.prompts, float64(r.Prompts-prompts))
	}
	switch {
	case r.mayDefer(), r.Told:
	case r.FirstTokens > 0:
		s.learnFromFirstTokens(n, t, prefilled)
	default:
		s.learn(n, t, begun)
	}
	// 4. What is left of the queue.
	l.reading = lastReading{
		at: at, foreign: foreign, ran: max(0, foreign-others), behind: others / float64(max(waiting, 1)),
		room: freeTokens(r) / ratio, waiting: math.Inf(1), begun: begun,
	}
	if waiting > 0 {
		l.reading.waiting = queue[len(queue)-waiting].start
	}
	before := s.hot[n].empty
	s.correct(n, t, arrived, queue, waiting, others)
	if unbegun, ok := l.unbegun.see(at, r); ok && !l.first.known {
		s.correctShared(n, t, arrived, queue, unbegun, before)
	}
	// 5. The other values that picks read.
	l.fill.size = float64(max(0, r.KVTokens)) / ratio
	s.weigh(n, t)
	seen := prefilled.firstTokens()
	seen.Shared = !l.first.known
	if elapsed := at - last; elapsed > mostElapsed {
		seen.Counted *= mostElapsed / elapsed
	}
	return seen
}

// mayDefer reports whether calls are deferred. Where the server does not tell them apart, any call that waits at one with
// adapters may be.
func (r *Reading) mayDefer() bool {
	return r.Deferred > 0 || !r.WaitingSplit && r.Waiting > 0 && r.MaxAdapters > 0
}

// arrivedBy returns how many of the calls in flight had arrived by the time at.
func (l *load) arrivedBy(at float64) int {
	n := len(l.places)
	for n > 0 && l.places[n-1].at > at {
		n--
	}
	return n
}

// queued returns the first so many calls at endpoint n without the deferred ones, in the order of arrival, and notes the
// deferred ones. Of the calls that may be deferred those that came last are, as a free slot goes to the first. Where the
// server has no adapters, nothing tells which calls are deferred, and none is left out.
func (s *State) queued(n int32, arrived int, r *Reading) []place {
	l := &s.loads[n]
	l.deferred = l.deferred[:0]
	if r.Deferred == 0 || r.MaxAdapters <= 0 {
		return l.places[:arrived]
	}
	queue := s.scratch.queue[:0]
	for i := arrived - 1; i >= 0; i-- {
		if t := l.places[i]; len(l.deferred) < r.Deferred && s.adapters.mayBeDeferred(n, t.adapter) {
			l.deferred = append(l.deferred, t)
		} else {
			queue = append(queue, t)
		}
	}
	slices.Reverse(queue)
	s.scratch.queue = queue
	return queue
}

// ownWaiting returns how many of the waiting calls are the picker's own. A call that ran at the last reading does not
// wait at this one. Of the other calls, the picker's own are as likely to wait as foreign ones.
func (l *load) ownWaiting(at float64, waiting int, queue []place, foreign float64) int {
	own := len(queue)
	for own > 0 && queue[len(queue)-own].start < l.reading.waiting && queue[len(queue)-own].at <= l.reading.at {
		own--
	}
	others := max(0, foreign-l.reading.ran*weight(at-l.reading.at))
	all := float64(waiting)
	wait := max(math.Round(all*float64(own)/max(1, float64(own)+others)), all-others)
	return int(min(wait, float64(len(queue))))
}

// begun finds the last call of which it is known when its prefill began: one that waited at the last reading and does
// not now, or one that came to an empty queue. Where there is none since the last reading, the earlier one stays.
func (l *load) begun(at float64, queue []place, waiting int) begun {
	last := len(queue) - waiting - 1
	busy := waiting > 0 && queue[last+1].at <= at-step
	for i := last; i >= 0 && queue[i].start > l.reading.begun.position; i-- {
		switch t := queue[i]; {
		case t.start >= l.reading.waiting && t.at <= l.reading.at:
			return begun{position: t.start, at: at, busy: busy && i == last}
		case t.alone:
			return begun{position: t.start, at: t.at, busy: busy && i == last}
		}
	}
	before := l.reading.begun
	before.busy = busy && last >= 0 && queue[last].start == before.position
	return before
}

// learn takes endpoint n's speed from two calls whose prefills began one after the other with no pause between. In that
// time the endpoint also prefilled the foreign calls that waited among the picker's own. learn reports whether there
// were two such calls.
func (s *State) learn(n int32, now float64, next begun) bool {
	l := &s.loads[n]
	last := l.reading.begun
	if !last.busy || next.at <= last.at {
		return false
	}
	l.speed.observe(now, (next.position-last.position)*(1+l.reading.behind), next.at-last.at, s.hot[n].perToken)
	s.setSpeed(n, now)
	return true
}

// correct corrects the queue by the last reading. Of the calls that were in the queue or had begun by then, the last ones
// wait, as many as waiting says, and so many foreign ones with them. Calls that arrived later are behind them. Where first
// tokens are followed, they tell what is left. Else the call before the first waiting one may be anywhere in its prefill, and
// bounds the queue.
func (s *State) correct(n int32, now float64, arrived int, queue []place, waiting int, others float64) {
	h, l := &s.hot[n], &s.loads[n]
	first := len(queue) - waiting
	least := l.arrived - l.arrivedAt(arrived) + others*s.othersTokens(n)
	for _, t := range queue[first:] {
		least += t.tokens()
	}
	since := (now - l.reading.at) / h.perToken
	if l.first.known && len(l.deferred) == 0 {
		h.setQueue(now, max(l.first.remaining(now, l.places, h.perToken), least-since))
		return
	}
	most := least
	if first > 0 {
		most += queue[first-1].tokens()
	}
	h.setQueue(now, min(max(h.queue(now), least-since), most))
}

// correctShared corrects the queue of an endpoint that others call too, where it is known how many calls have no first token. Of
// the picker's own calls, those that the queue has not reached are among them; the others are foreign. The first one is half
// done on average. A server's page shows a call only at the end of a step, so that own calls may be missing there: the later of
// what correct found and of this counts. The queue was to be empty at the time before.
func (s *State) correctShared(n int32, now float64, arrived int, queue []place, unbegun int, before float64) {
	h, l := &s.hot[n], &s.loads[n]
	found := h.empty
	h.empty = before
	later := l.arrived - l.arrivedAt(arrived)
	first, own := s.notDone(n, l.reading.at, queue, unbegun)
	since := (now - l.reading.at) / h.perToken
	if len(first) == unbegun { // all are the picker's own, and the queue is known
		most, least := later+own, later
		if unbegun > 0 {
			least = most - first[0].tokens()
		}
		h.setQueue(now, min(max(h.queue(now), least-since), most))
	} else {
		work := own + float64(unbegun-len(first))*s.othersTokens(n)
		work -= work / float64(unbegun) / 2
		h.setQueue(now, later+max(0, work-since))
	}
	h.empty = max(h.empty, found)
}

// notDone returns those of a queue's calls, up to so many, that endpoint n is not taken to have prefilled by the time at, and
// their work in tokens.
func (s *State) notDone(n int32, at float64, queue []place, most int) (calls []place, work float64) {
	drained := s.drained(n, at)
	from := len(queue)
	for from > 0 && len(queue)-from < most && queue[from-1].end > drained {
		from--
		work += queue[from].tokens()
	}
	return queue[from:], work
}

// arrivedAt returns the position of the queue's end at the time when only so many of the calls in flight had arrived.
func (l *load) arrivedAt(arrived int) float64 {
	if arrived < len(l.places) {
		return l.places[arrived].start
	}
	return l.arrived
}

// freeTokens returns the KV cache head-room of a reading, in tokens; +Inf where it is not reported or plentiful.
func freeTokens(r *Reading) float64 {
	if math.IsNaN(r.KVUsage) || r.KVUsage < 1-shortOfMemory || r.KVTokens <= 0 {
		return math.Inf(1)
	}
	return max(0, 1-r.KVUsage) * float64(r.KVTokens)
}

// weight returns how much a reading of this age counts, from 1 down to 0.
func weight(age float64) float64 {
	return max(0, min(1, 1-(age-fresh)/fade))
}

// Age adjusts the state to the time that has passed since Age last did so. It must be called before each Pick, and does
// nothing in most calls.
func (s *State) Age(now time.Duration, members []int32) {
	t := now.Seconds()
	due := t >= s.aged+refreshEvery || t < s.aged
	if s.share.stale || due && len(s.share.all) > 0 {
		s.deal(members)
	}
	if !due {
		return
	}
	s.ageSpeeds(t, members)
	s.findSilent(t, members)
	s.aged = t
	sum, weights := 0.0, 0.0
	for _, n := range members {
		if w := weight(t - s.loads[n].reading.at); w > 0 {
			sum += w * s.loads[n].reading.foreign
			weights += w
		}
	}
	s.meanForeign = 0
	if weights > 0 {
		s.meanForeign = sum / weights
	}
	for _, n := range members {
		s.weigh(n, t)
	}
}

// weigh updates the values that picks read of endpoint n by its last reading and that reading's age.
func (s *State) weigh(n int32, now float64) {
	h, r := &s.hot[n], &s.loads[n].reading
	w := weight(now - r.at)
	s.setDisplaces(n, now)
	h.calls = float64(h.own) + s.meanForeign*(1-w)
	h.room = math.Inf(1)
	if w > 0 {
		h.calls += w * r.foreign
		h.room = r.room * s.density * h.perToken / w
	}
}
