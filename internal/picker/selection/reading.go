package selection

import (
	"math"
	"time"
)

// Reading is what one endpoint told of itself at one moment.
type Reading struct {
	// At is when it was read, on the pool's clock.
	At time.Duration
	// Running and Waiting are calls that are being worked on and calls that are not yet begun.
	Running, Waiting int
	// KVUsage is the share of the KV memory that running calls use, 0 to 1; negative or NaN where it is not told.
	KVUsage float64
	// KVTokens is how many tokens the KV memory holds; 0 where it is not told.
	KVTokens int
	// MaxAdapters is the number of LoRA adapters that can be resident; 0 where the endpoint tells of none.
	MaxAdapters int
	// RunningAdapters and WaitingAdapters are those of running and of waiting calls, in any order, repeats allowed.
	RunningAdapters, WaitingAdapters []string
	Counters
}

// told is what is left of an endpoint's last reading.
type told struct {
	at      float64 // seconds of the clock; -Inf where there was none
	foreign float64 // calls that are not the picker's own
	behind  float64 // those of them that waited, for each of the picker's own that did
	ran     float64 // those of them that did not wait
	room    float64 // free KV memory in tokens, +Inf where that is not told
	waiting float64 // the position of the first call that waited; +Inf where none did
	begun   begun
	counted counted
}

// nothingTold is of an endpoint without a reading.
func nothingTold() told {
	return told{at: math.Inf(-1), waiting: math.Inf(1), begun: begun{position: -1}}
}

// begun is a call of which it is known when its prefill began: when it came, if nothing was ahead of it, and else
// between the reading that showed it waiting and the next.
type begun struct {
	position, at float64
	// busy says that calls waited behind it, so that the endpoint prefilled without a pause until the next one began.
	busy bool
}

const (
	// step is longer than a server's step in which it only decodes, in seconds: what waits longer waits for prefill.
	step = 0.1
	// fresh is the age up to which a reading counts fully, and fade the time over which it then loses weight, both in
	// seconds: three times the longest interval of scraping that is usual, and as much again.
	fresh, fade = 3, 3
	// refreshEvery is how often weights are adjusted to the readings' ages, in seconds.
	refreshEvery = 0.25
	// shortOfMemory is the free share of KV memory below which its lack is counted with.
	shortOfMemory = 0.5
)

// Observe takes in a reading of endpoint n. One that is older than the last, or says what cannot be, changes nothing.
func (s *State) Observe(n int32, now time.Duration, r *Reading) {
	at, t := min(r.At, now).Seconds(), now.Seconds()
	l := &s.loads[n]
	if at <= l.told.at || r.Running < 0 || r.Waiting < 0 {
		return
	}
	// 1. Of the calls there, which are the picker's own, and which of those wait.
	arrived := l.arrivedBy(at)
	foreign := max(0, float64(r.Running)+float64(r.Waiting)-float64(arrived))
	waiting := l.ownWaiting(at, r.Waiting, arrived, foreign)
	others := float64(r.Waiting - waiting)
	// 2. How fast the server prefills: how fast the queue was worked off since the last reading, and what it counted.
	begun := l.begun(at, arrived, waiting)
	timed := s.learn(n, t, begun)
	counted := s.learnFromCounters(n, t, at, r, timed)
	// 3. What is left of the queue.
	l.told = told{
		at: at, foreign: foreign, ran: max(0, foreign-others), behind: others / float64(max(waiting, 1)),
		room: freeTokens(r), waiting: math.Inf(1), begun: begun, counted: counted,
	}
	if waiting > 0 {
		l.told.waiting = l.places[arrived-waiting].start
	}
	s.correct(n, t, arrived, waiting, others)
	// 4. Adapters, and the rest of what picks read.
	l.fill.size = float64(max(0, r.KVTokens))
	s.adapters.observe(n, t, r)
	s.weigh(n, t)
}

// arrivedBy is the number of the calls in flight that had come by the moment.
func (l *load) arrivedBy(at float64) int {
	n := len(l.places)
	for n > 0 && l.places[n-1].at > at {
		n--
	}
	return n
}

// ownWaiting is how many of the waiting calls are the picker's own. A call that ran at the last reading does not wait at
// this one; of the others, the picker's own wait as often as those of others do.
func (l *load) ownWaiting(at float64, waiting, arrived int, foreign float64) int {
	own := arrived
	for own > 0 && l.places[arrived-own].start < l.told.waiting && l.places[arrived-own].at <= l.told.at {
		own--
	}
	others := max(0, foreign-l.told.ran*weight(at-l.told.at))
	all := float64(waiting)
	wait := max(math.Round(all*float64(own)/max(1, float64(own)+others)), all-others)
	return int(min(wait, float64(arrived)))
}

// begun finds the last call whose beginning is known: one that waited at the last reading and does not wait now, or
// one that came to an empty queue. Where there is none since, the one known before stays.
func (l *load) begun(at float64, arrived, waiting int) begun {
	last := arrived - waiting - 1
	busy := waiting > 0 && l.places[last+1].at <= at-step
	for i := last; i >= 0 && l.places[i].start > l.told.begun.position; i-- {
		switch t := l.places[i]; {
		case t.start >= l.told.waiting && t.at <= l.told.at:
			return begun{position: t.start, at: at, busy: busy && i == last}
		case t.alone:
			return begun{position: t.start, at: t.at, busy: busy && i == last}
		}
	}
	before := l.told.begun
	before.busy = busy && last >= 0 && l.places[last].start == before.position
	return before
}

// learn takes endpoint n's speed from two calls that began one after the other with no pause between. Between them the
// endpoint prefilled the calls of others as well that waited among the picker's own.
// It reports whether there were two.
func (s *State) learn(n int32, now float64, next begun) bool {
	l := &s.loads[n]
	last := l.told.begun
	if !last.busy || next.at <= last.at {
		return false
	}
	l.speed.observe(now, (next.position-last.position)*(1+l.told.behind), next.at-last.at, s.hot[n].perToken)
	s.setSpeed(n, now)
	return true
}

// correct holds the queue to what the last reading shows: of the calls arrived by then, the last so many wait, and with
// them some of others; the one before the first of them may be anywhere in its prefill. Calls that came since are
// behind them.
func (s *State) correct(n int32, now float64, arrived, waiting int, others float64) {
	h, l := &s.hot[n], &s.loads[n]
	first := arrived - waiting
	least := l.arrived - l.arrivedAt(arrived) + others*s.meanTokens()
	for _, t := range l.places[first:arrived] {
		least += t.tokens()
	}
	most := least
	if first > 0 {
		most += l.places[first-1].tokens()
	}
	since := (now - l.told.at) / h.perToken
	h.setQueue(now, min(max(h.queue(now), least-since), most))
}

// arrivedAt is the position of the queue's end when only so many of the calls in flight had come.
func (l *load) arrivedAt(arrived int) float64 {
	if arrived < len(l.places) {
		return l.places[arrived].start
	}
	return l.arrived
}

// freeTokens is the KV memory that a reading tells to be free, in tokens; +Inf where it does not tell or there is
// plenty.
func freeTokens(r *Reading) float64 {
	if math.IsNaN(r.KVUsage) || r.KVUsage < 1-shortOfMemory || r.KVTokens <= 0 {
		return math.Inf(1)
	}
	return max(0, 1-r.KVUsage) * float64(r.KVTokens)
}

// weight is how much a reading of this age counts, from 1 down to 0.
func weight(age float64) float64 {
	return max(0, min(1, 1-(age-fresh)/fade))
}

// Age adjusts the state to the time that has passed since it last did. It must be called before each Pick and does
// nothing most times.
func (s *State) Age(now time.Duration, members []int32) {
	t := now.Seconds()
	if t < s.aged+refreshEvery && t >= s.aged {
		return
	}
	s.ageSpeeds(t, members)
	s.listen(t, members)
	s.aged = t
	sum, weights := 0.0, 0.0
	for _, n := range members {
		if w := weight(t - s.loads[n].told.at); w > 0 {
			sum += w * s.loads[n].told.foreign
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

// weigh puts what endpoint n told, by its age, into what picks read.
func (s *State) weigh(n int32, now float64) {
	h, r := &s.hot[n], &s.loads[n].told
	w := weight(now - r.at)
	s.setDisplaces(n, now)
	h.calls = float64(h.own) + s.meanForeign*(1-w)
	h.room = math.Inf(1)
	if w > 0 {
		h.calls += w * r.foreign
		h.room = r.room * h.perToken / w
	}
}
