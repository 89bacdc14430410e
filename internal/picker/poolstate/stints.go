package poolstate

import "time"

// stint is a time during which a picker picks for a pool, from its first pick to its last, without a pause of stintEnds.
type stint struct {
	first, last time.Duration
	calls       recentCalls
}

const (
	// stintEnds is the pause after which a picker's next pick begins another stint.
	stintEnds = 2 * time.Second
	// stintShown is for how long a stint is told after its last pick.
	stintShown = 10 * time.Second
)

// callsOver is the time over which the calls of pickers are compared: some bursts.
const callsOver = 30 * time.Second

// never is the stint of a picker that has not picked.
var never = stint{first: -stintShown, last: -stintShown}

func (s *stint) pick(now time.Duration) {
	if now >= s.last+stintEnds {
		s.first = now
	}
	s.last = now
	s.calls.add(now, 1, callsOver)
}

// Stint is a picker's latest stint, of the last ten seconds, on the pool's clock.
type Stint struct {
	// Process is the picker's; "" is this one.
	Process     string
	First, Last time.Duration
}

// stints lists the pickers that picked for the pool of late. The pool's mutex is held.
func (p *Pool) stints(now time.Duration) (out []Stint) {
	add := func(process string, s stint) {
		if now < s.last+stintShown {
			out = append(out, Stint{process, s.first, s.last})
		}
	}
	add("", p.own)
	for process, s := range p.others {
		add(process, s)
	}
	return out
}
