package selection

import (
	"math"
	"time"
)

// health is what is known of an endpoint's health from its answers, and from answers that do not come.
type health struct {
	failed trouble // answers of a server in trouble (5xx), and calls that another endpoint had to serve
	shed   trouble // answers by which the server sheds load (429, 503)
	// silence is kept for each kind of answer, as their heads come at different times.
	silence [2]silence
	silent  bool // a silence has lasted too long
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
	// A server that sheds is well and only full, so it is avoided for a fraction of the time for which a failed one is: by
	// default a quarter of a second at first, and five seconds at most.
	shedFor, shedMax = 4, 12
	// settling is how long it may take the proxy to learn of a new endpoint, in seconds. The picker learns of a pod from
	// its own watch. The proxy learns of it from istiod, which collects changes before it sends them.
	settling = 3
)

// illness returns the name and the bound of the class that endpoint n is in for its health; "" and 0 where it is well.
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

// ill says whether illness must be asked.
func (h *health) ill() bool {
	return h.failed != trouble{} || h.shed != trouble{} || h.silent
}

// change changes endpoint n's health, and counts the endpoints that are not well.
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

// failed notes a failure of endpoint n. The failures of calls that were under way when the endpoint first failed count
// as one. So do the failures of several probes.
func (s *State) failed(n int32, now, came float64, probe bool) {
	s.change(n, func(h *health) {
		if came >= h.failed.last && (probe || h.failed.until <= now) {
			h.failed.note(now, s.settings.AvoidFor, s.settings.AvoidMax)
		}
	})
}

// shed notes that endpoint n answered a call with 429 or 503.
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

// doubled returns d after so many doublings, and at most the limit.
func doubled(d time.Duration, doublings int, most time.Duration) time.Duration {
	if d <<= min(doublings, maxDoublings); d > 0 && d <= most {
		return d
	}
	return most
}

// recover notes that endpoint n began a good answer to a call that arrived at the time came. The answer ends the
// endpoint's failures. It takes back one step of shedding, and only if the call arrived after the endpoint last shed: a
// full server sheds new calls while it answers the calls that it has taken.
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

// probe notes a call to endpoint n, and returns whether the call is a probe: the first one after the endpoint was
// avoided. Other calls are kept away until the probe's answer begins, and at most for AvoidMax: a whole answer may take
// minutes to begin.
func (s *State) probe(n int32, now float64) bool {
	h := &s.health[n].failed
	if h.count == 0 || h.until > now {
		return false
	}
	h.until = now + s.settings.AvoidMax.Seconds()
	return true
}

// unprobe notes that a probe showed nothing of endpoint n's health, so that the next call is a probe.
func (s *State) unprobe(n int32, now float64) {
	if h := &s.health[n].failed; h.count > 0 {
		h.until = min(h.until, now)
	}
}

// Joined notes that endpoint n came into the pool, or came back, at the given time.
func (s *State) Joined(n int32, now time.Duration) { s.health[n].joined = now.Seconds() }

// known returns the time from which on the proxy knows the endpoint.
func (h *health) known() float64 { return h.joined + settling }

// Known says whether the proxy knows endpoint n at the given time, and so sends calls there if the endpoint is picked.
func (s *State) Known(n int32, now time.Duration) bool { return s.health[n].known() <= now.Seconds() }

// skipped notes that another endpoint served a call that endpoint n was picked for. Endpoint n has failed. Or it is new
// and the proxy does not know it yet: then it is avoided until the proxy does.
func (s *State) skipped(n int32, now float64, c *Claim) {
	known := s.health[n].known()
	if known <= now {
		s.failed(n, now, c.place.at, c.probe)
		return
	}
	if c.probe { // the probe showed nothing of the endpoint
		s.unprobe(n, now)
		c.probe = false
	}
	s.change(n, func(h *health) { h.failed.until = max(h.failed.until, known) })
}

// silence is how long an endpoint has not begun any answer while calls waited for one.
type silence struct {
	unanswered int     // calls whose answer has not begun
	since      float64 // when the first call that waits now began to wait, in seconds of the clock
	waited     float64 // the earlier waits, of calls that left, in seconds
	expected   float64 // how long the first of these calls was expected to wait for its first token
}

// The kinds of answers. The headers of a whole answer come when its generation has ended, the headers of a streamed one
// before its generation has begun.
const (
	whole = iota
	streamed
)

// An endpoint is silent when calls have waited for an answer for longer than leastSuspicious, in seconds, and for
// longer than suspicious times both the time that was expected and the time that the pool's answers of the kind take.
const suspicious = 4

var leastSuspicious = [...]float64{whole: 30, streamed: 5}

// unanswered is the number of calls whose answer has not begun.
func (h *health) unanswered() int {
	return h.silence[whole].unanswered + h.silence[streamed].unanswered
}

// wait notes a call whose first token is expected after the given time.
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

// lasted returns the length of the silence, in seconds, without the times in which no call waited.
func (q *silence) lasted(now float64) float64 {
	if q.unanswered == 0 {
		return q.waited
	}
	return q.waited + now - q.since
}

// answerBegan notes that endpoint n began an answer, so that it is not silent. The calls that still wait are expected to be
// answered within the time that the queue takes to drain.
func (s *State) answerBegan(n int32, now float64) {
	s.change(n, func(h *health) {
		h.silent = false
		for kind := range h.silence {
			q := &h.silence[kind]
			q.since, q.waited, q.expected = now, 0, max(0, s.hot[n].empty-now)
		}
	})
}

// findSilent finds the endpoints that are silent.
func (s *State) findSilent(now float64, members []int32) {
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

// mayHang says that a call's wait shows nothing of its prompt: the endpoint may hang. Streamed answers begin with the
// first token at the latest, so a call that waits for one has none. A whole answer takes as long as its generation. A
// late one shows a hang only if it is later than usual, and no other answer began in the meantime.
func (s *State) mayHang(c *Claim, now float64) bool {
	if !c.waits {
		return false
	}
	h := &s.health[c.Endpoint]
	q := &h.silence[c.kind]
	return c.kind == streamed || h.silent || q.lasted(now) > max(q.expected, s.heads[c.kind].mean())
}

// heads is how long the pool's good answers of one kind took to begin, as sums that decay.
type heads struct{ seconds, answers, at float64 }

// add notes one answer that took so long.
func (m *heads) add(now, seconds float64) {
	keep := math.Exp(-max(0, now-m.at) / workMemory)
	m.seconds = m.seconds*keep + seconds
	m.answers = m.answers*keep + 1
	m.at = max(now, m.at)
}

// mean returns 0 where no answer was seen.
func (m *heads) mean() float64 {
	if m.answers < 1e-9 {
		return 0
	}
	return m.seconds / m.answers
}
