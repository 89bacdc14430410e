package selection

import (
	"math"
	"time"
)

// health is what the answers of an endpoint, and the lack of them, tell of it.
type health struct {
	failed trouble // answers of a server in trouble (5xx), and calls that another endpoint had to serve
	shed   trouble // answers that send the caller away (429, 503)
	// silence is kept for each kind of answer, as their heads come at different times.
	silence [2]silence
	silent  bool // one of them has lasted too long
	// joined is when the endpoint came into the pool, in seconds of the clock; -Inf where that is long ago.
	joined float64
}

// trouble is a run of answers of one bad kind. The endpoint is avoided for a while, which doubles with each one.
type trouble struct {
	count int
	last  float64 // when the last one was counted, in seconds of the clock
	until float64 // the moment up to which the endpoint is avoided
}

const (
	// maxDoublings keeps the shift small: 2³⁰ s is longer than any bound.
	maxDoublings = 30
	// A server that sheds is well and only full, so it is avoided for a part of the time that one in trouble is: at
	// first for a quarter of a second, at most for five seconds, by default.
	shedFor, shedMax = 4, 12
	// settling is how long an endpoint may be in the pool before the proxy knows it, in seconds: the picker learns of a
	// pod from its own watch, the proxy from istiod, which collects changes before it sends them.
	settling = 3
)

// illness is the name and the bound of the class that endpoint n is in for its health now; "" and 0 where it is well.
func (s *State) illness(n int32, now float64) (name string, by class) {
	switch h := &s.health[n]; {
	case h.failed.until > now:
		return ClassUnhealthy, unhealthy
	case h.silent && h.unanswered() > 0:
		return ClassSilent, silent
	case h.shed.until > now:
		return ClassShedding, shedding
	}
	return "", 0
}

// ill says that illness has to be asked.
func (h *health) ill() bool {
	return h.failed != trouble{} || h.shed != trouble{} || h.silent
}

// change changes endpoint n's health, and keeps count of those that are not well.
func (s *State) change(n int32, by func(h *health)) {
	h := &s.health[n]
	before := h.ill()
	by(h)
	switch after := h.ill(); {
	case after && !before:
		s.unwell++
	case before && !after:
		s.unwell--
	}
}

// failed notes a failure of endpoint n. Those of calls that were under way when it failed first count as one; so do
// those of several probes.
func (s *State) failed(n int32, now, came float64, probe bool) {
	s.change(n, func(h *health) {
		if came >= h.failed.last && (probe || h.failed.until <= now) {
			h.failed.note(now, s.settings.AvoidFor, s.settings.AvoidMax)
		}
	})
}

// shed notes that endpoint n sent a call away.
func (s *State) shed(n int32, now, came float64) {
	s.change(n, func(h *health) {
		if came >= h.shed.last && h.shed.until <= now {
			h.shed.note(now, s.settings.AvoidFor/shedFor, s.settings.AvoidMax/shedMax)
		}
	})
}

func (t *trouble) note(now float64, first, most time.Duration) {
	t.until = now + doubled(first, t.count, most).Seconds()
	t.last = now
	t.count++
}

// doubled is a time after so many doublings, up to a limit.
func doubled(d time.Duration, doublings int, most time.Duration) time.Duration {
	if d <<= min(doublings, maxDoublings); d > 0 && d <= most {
		return d
	}
	return most
}

// recover notes that endpoint n began a good answer to a call that came at a moment. That ends its failures. Of shedding
// it takes one step back, and only for a call that came after the endpoint last shed: a server that is full sends new
// calls away while it answers those that it has taken.
func (s *State) recover(n int32, came float64) {
	s.change(n, func(h *health) {
		h.failed = trouble{}
		if h.shed.count == 0 || came < h.shed.last {
			return
		}
		h.shed.until = 0
		if h.shed.count--; h.shed.count == 0 {
			h.shed = trouble{}
		}
	})
}

// probe notes a call to endpoint n, and says whether it is a probe: the first one after the endpoint was avoided. The
// others are kept away until the probe's answer begins. A probe whose answer does not come keeps them away no longer
// than the longest time for which an endpoint is avoided: a whole answer may take minutes to begin.
func (s *State) probe(n int32, now float64) bool {
	h := &s.health[n].failed
	if h.count == 0 || h.until > now {
		return false
	}
	h.until = now + s.settings.AvoidMax.Seconds()
	return true
}

// unprobe notes that a probe told nothing of endpoint n, so that the next call is one.
func (s *State) unprobe(n int32, now float64) {
	if h := &s.health[n].failed; h.count > 0 {
		h.until = min(h.until, now)
	}
}

// Joined says that endpoint n came into the pool, or came back, at a moment.
func (s *State) Joined(n int32, now time.Duration) { s.health[n].joined = now.Seconds() }

// known is the moment from which on the proxy knows the endpoint.
func (h *health) known() float64 { return h.joined + settling }

// Known says whether the proxy knows endpoint n by a moment, and so asks it where it is picked.
func (s *State) Known(n int32, now time.Duration) bool { return s.health[n].known() <= now.Seconds() }

// skipped notes that another endpoint served the call that was meant for endpoint n. It has failed; or, while it is new,
// the proxy does not know it yet, and it is not preferred until the proxy does.
func (s *State) skipped(n int32, now float64, c *Claim) {
	known := s.health[n].known()
	if known <= now {
		s.failed(n, now, c.place.at, c.probe)
		return
	}
	if c.probe { // it told nothing
		s.unprobe(n, now)
		c.probe = false
	}
	s.change(n, func(h *health) { h.failed.until = max(h.failed.until, known) })
}

// silence is how long an endpoint has let calls wait for any answer.
type silence struct {
	unanswered int     // calls whose answer has not begun
	since      float64 // when the present wait began, in seconds of the clock
	waited     float64 // the waits before it, of calls that left, in seconds
	expected   float64 // how long the first of these calls was expected to wait for its first token
}

// The kinds of answers: the head of a whole one comes when its generation has ended, that of a streamed one before it
// has begun.
const (
	whole = iota
	streamed
)

// An endpoint is silent when calls have waited for its first answer for a time that nothing explains: longer than the
// least that is suspicious, and several times as long as was expected and as the pool's answers of the kind take.
const suspicious = 4

var leastSuspicious = [...]float64{whole: 30, streamed: 5}

// unanswered is the number of calls whose answer has not begun.
func (h *health) unanswered() int {
	return h.silence[whole].unanswered + h.silence[streamed].unanswered
}

// wait notes a call whose first token is expected after a time.
func (q *silence) wait(now, expected float64) {
	if q.unanswered == 0 {
		q.since = now
		if q.waited == 0 {
			q.expected = expected
		}
	}
	q.unanswered++
}

// end notes that a call does not wait any more.
func (q *silence) end(now float64) {
	if q.unanswered--; q.unanswered == 0 {
		q.waited += now - q.since
	}
}

// lasted is the length of the silence, in seconds, without the times in which there was nothing to answer.
func (q *silence) lasted(now float64) float64 {
	if q.unanswered == 0 {
		return q.waited
	}
	return q.waited + now - q.since
}

// heard notes that endpoint n began an answer: it is not silent. The rest of what waits there is expected within the
// time that its queue is long.
func (s *State) heard(n int32, now float64) {
	s.change(n, func(h *health) {
		h.silent = false
		for kind := range h.silence {
			q := &h.silence[kind]
			q.since, q.waited, q.expected = now, 0, max(0, s.hot[n].empty-now)
		}
	})
}

// listen finds the members that are silent.
func (s *State) listen(now float64, members []int32) {
	for _, n := range members {
		silent := false
		for kind, q := range s.health[n].silence {
			usual := max(q.expected, s.heads[kind].mean())
			silent = silent || q.lasted(now) > max(leastSuspicious[kind], suspicious*usual)
		}
		if silent != s.health[n].silent {
			s.change(n, func(h *health) { h.silent = silent })
		}
	}
}

// unheard says that the wait for a call's answer shows nothing of its prompt: the endpoint may as well hang. The head of a
// streamed answer comes with the first token at the latest, so a call that waits for one has none. That of a whole one
// takes as long as the generation, so it may be late, and yet not later than is usual without a word from the endpoint.
func (s *State) unheard(c *Claim, now float64) bool {
	if !c.waits {
		return false
	}
	h := &s.health[c.Endpoint]
	q := &h.silence[c.kind]
	return c.kind == streamed || h.silent || q.lasted(now) > max(q.expected, s.heads[c.kind].mean())
}

// heads is how long the pool's good answers of one kind took to begin, as sums that forget.
type heads struct{ seconds, answers, at float64 }

// add notes one answer that took so long.
func (m *heads) add(now, seconds float64) {
	keep := math.Exp(-max(0, now-m.at) / workMemory)
	m.seconds = m.seconds*keep + seconds
	m.answers = m.answers*keep + 1
	m.at = max(now, m.at)
}

// mean is 0 where none was seen.
func (m *heads) mean() float64 {
	if m.answers < 1e-9 {
		return 0
	}
	return m.seconds / m.answers
}
