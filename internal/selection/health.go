package selection

import "time"

// health is what an endpoint's failures tell. It is avoided for a while, twice as long after each failure that follows
// the last; then one call is let through, and the others wait for how that one ends.
type health struct {
	failures int
	until    float64 // the moment up to which it is avoided, in seconds of the clock
}

// maxDoublings keeps the shift small: 2³⁰ s is longer than any bound.
const maxDoublings = 30

// avoided says whether endpoint n is to be avoided now.
func (s *State) avoided(n int32, now float64) bool { return s.health[n].until > now }

// failed notes a failure of endpoint n. Those of calls that were under way when it failed first count as one; that of
// a probe counts always.
func (s *State) failed(n int32, now float64, probe bool) {
	h := &s.health[n]
	if h.until > now && !probe {
		return
	}
	if h.failures == 0 {
		s.unwell++
	}
	h.until = now + s.avoidance(h.failures).Seconds()
	h.failures++
}

func (s *State) avoidance(failures int) time.Duration {
	d := s.settings.AvoidFor << min(failures, maxDoublings)
	if d <= 0 || d > s.settings.AvoidMax {
		return s.settings.AvoidMax
	}
	return d
}

// recover notes that endpoint n answered.
func (s *State) recover(n int32) {
	if s.health[n].failures > 0 {
		s.health[n] = health{}
		s.unwell--
	}
}

// probe notes a call to endpoint n. If the endpoint was avoided until lately, others are kept away until this one ends.
func (s *State) probe(n int32, now float64) bool {
	h := &s.health[n]
	if h.failures == 0 || h.until > now {
		return false
	}
	h.until = now + s.avoidance(h.failures-1).Seconds()
	return true
}
