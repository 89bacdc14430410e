package waypointwatch

import "time"

const (
	// window is the time before now whose calls decide a verdict.
	window = 30 * time.Second
	// idleAfter is how long after its last pick a pool counts as idle.
	idleAfter = 10 * time.Minute
	// unpickedShare is the share of calls without a pick, as one in so many, from which a pool counts as unpicked.
	unpickedShare = 10
)

// State says whether a pool's calls are picked, by a waypoint's counters.
type State int

// The states. The zero State means that nothing is known yet.
const (
	None State = iota
	// Unread says that the counters cannot be read.
	Unread
	// NotCalled says that no call to the pool has ever come by the waypoint.
	NotCalled
	// Before says that calls came before the controller began to watch, and none since.
	Before
	// Idle says that calls were picked, the last one more than ten minutes ago.
	Idle
	// Picked says that calls are picked.
	Picked
	// Unpicked says that a tenth of the calls or more end without a pick. It holds until new calls show otherwise.
	Unpicked
)

// Cause is why calls end without a pick, or why counters are unread.
type Cause int

// The causes of Unpicked and, from NotReached on, those of Unread.
const (
	NoCause Cause = iota
	// TooSlow: replies take longer than the waypoint waits.
	TooSlow
	// Refused: no stream gets a reply.
	Refused
	// Turned: some streams get replies, and others break.
	Turned
	// NotReached: no pod of the waypoint answers with a page.
	NotReached
	// NoPods: the waypoint has no running pod.
	NoPods
	// NotCounted: the pages have no counters of any pool, so Istio's stats matcher drops them.
	NotCounted
	// NotConfigured: the pages have counters of other pools and none of this one.
	NotConfigured
)

// Verdict is a judgement on a pool's calls at a waypoint. It does not change from reading to reading without a cause.
type Verdict struct {
	State State
	Cause Cause
}

// Counts are the calls of the last window.
type Counts struct{ Asked, Unpicked int64 }

// interval is the evidence of all pods of a waypoint between two rounds of readings.
type interval struct {
	end time.Time
	evidence
}

// place is the evidence and verdict for a pool at a waypoint.
type place struct {
	recent  []interval // oldest first
	began   time.Time  // when the watch of it began
	read    time.Time  // when its counters were last read; zero if never
	picked  time.Time  // when a call was last picked; zero if never
	called  bool       // whether a call ever came
	unread  Cause      // why the last round read no counters
	verdict Verdict

	// asked and unpicked are the sums of all evidence. A pod may report any numbers, so they are floats, which cannot overflow.
	asked, unpicked float64

	// byCalls is the last verdict from calls. So that the cause does not change with each reading, and the status with it,
	// a cause stays for at least a window: caused is since when byCalls has its cause, unreadFor since when unread has its.
	byCalls           Verdict
	caused, unreadFor time.Time
}

// addEvidence adds the evidence of a round of readings.
func (p *place) addEvidence(now time.Time, e evidence) {
	p.read = now
	p.asked += float64(e.asked)
	p.unpicked += float64(e.unpicked)
	if e != (evidence{}) {
		p.recent = append(p.recent, interval{now, e})
	}
	if e.replies > 0 && e.asked > e.unpicked {
		p.picked = now
	}
	p.called = p.called || e.asked > 0
}

// counts are the calls of the window.
func (p *place) counts() Counts {
	all := p.sum(0)
	return Counts{Asked: all.asked, Unpicked: all.unpicked}
}

func (p *place) sum(from int) evidence {
	var all evidence
	for _, i := range p.recent[min(from, len(p.recent)):] {
		all = all.plus(i.evidence)
	}
	return all
}

// judge updates the verdict and reports whether it has changed.
func (p *place) judge(now time.Time) bool {
	for len(p.recent) > 0 && now.Sub(p.recent[0].end) >= window {
		p.recent = p.recent[1:]
	}
	before := p.verdict
	p.verdict = p.now(now)
	return p.verdict != before
}

func (p *place) now(now time.Time) Verdict {
	since := p.read
	if since.IsZero() {
		since = p.began
	}
	switch {
	case now.Sub(since) >= window:
		next := Verdict{Unread, p.unread}
		if p.verdict.State == Unread && (p.verdict == next || now.Sub(p.unreadFor) < window) {
			return p.verdict
		}
		p.unreadFor = now
		return next
	case p.read.IsZero():
		return Verdict{}
	}
	p.judgeCalls(now)
	switch {
	case p.byCalls.State == Unpicked:
		return p.byCalls
	case !p.picked.IsZero() && now.Sub(p.picked) < idleAfter:
		return Verdict{State: Picked}
	case !p.picked.IsZero():
		return Verdict{State: Idle}
	case p.called:
		return Verdict{State: Before}
	default:
		return Verdict{State: NotCalled}
	}
}

// judgeCalls updates byCalls if the window has calls.
func (p *place) judgeCalls(now time.Time) {
	all := p.sum(0)
	switch {
	case all.unpicked > 0 && all.unpicked*unpickedShare >= all.asked:
		if p.byCalls.State == Unpicked && now.Sub(p.caused) < window {
			return
		}
		if next := (Verdict{Unpicked, p.cause()}); next != p.byCalls {
			p.byCalls, p.caused = next, now
		}
	case all.replies > 0 && all.asked > 0:
		p.byCalls = Verdict{State: Picked}
	}
}

// cause is why calls are not picked. Replies count only in intervals after the one with the first unpicked call, as replies in
// the same interval may be from before that call.
func (p *place) cause() Cause {
	all := p.sum(0)
	if all.timeouts*2 >= all.unpicked {
		return TooSlow
	}
	for i, in := range p.recent {
		if in.unpicked > 0 && p.sum(i+1).replies > 0 {
			return Turned
		}
	}
	return Refused
}
