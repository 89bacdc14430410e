package waypointwatch

import "time"

const (
	// window is the time by which calls are judged.
	window = 30 * time.Second
	// idleAfter is how long after its last pick a pool is no longer said to be picked.
	idleAfter = 10 * time.Minute
	// blindShare is the part of calls without a pick, as one in so many, from which a pool counts as unpicked.
	blindShare = 10
)

// State is what a waypoint's counters say of the picking for a pool.
type State int

// The states. The zero State is that nothing is known yet.
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
	// Unpicked says that a tenth of the calls or more end without a pick. It holds until calls show otherwise.
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
	// NotReached: no pod of the waypoint shows a page.
	NotReached
	// NoPods: the waypoint has no pod that runs.
	NoPods
	// NotCounted: the pages show no counters of any pool, so Istio's stats matcher leaves them out.
	NotCounted
	// NotConfigured: the pages show counters of other pools and none of this one.
	NotConfigured
)

// Verdict is a judgement that stays the same while the same things happen.
type Verdict struct {
	State State
	Cause Cause
}

// Counts are the calls of the last window.
type Counts struct{ Asked, Unpicked int64 }

// interval is what all pods of a waypoint told between two rounds of readings.
type interval struct {
	end time.Time
	evidence
}

// place is a pool at a waypoint: what has been seen of it, oldest first, and what follows.
type place struct {
	recent  []interval
	began   time.Time // when it was first looked at
	read    time.Time // when its counters were last read; zero where never
	picked  time.Time // when a call was last picked; zero where never
	called  bool      // a call came at some time
	unread  Cause     // why the last round read no counters
	verdict Verdict

	// asked and unpicked are the sums of all evidence. A pod may tell what it likes, so they are floats, which do not overflow.
	asked, unpicked float64

	// byCalls is the last verdict that calls led to. A cause that came and went with each reading would have the status
	// written as often: caused is since when it has its cause, and unreadFor since when counters are unread for theirs.
	byCalls           Verdict
	caused, unreadFor time.Time
}

// saw takes in what a round of readings told.
func (p *place) saw(now time.Time, e evidence) {
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

// judge brings the verdict up to date and says whether it is another than before.
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

// judgeCalls judges by the calls of the window, where there are any.
func (p *place) judgeCalls(now time.Time) {
	all := p.sum(0)
	switch {
	case all.unpicked > 0 && all.unpicked*blindShare >= all.asked:
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

// cause is why calls are not picked. Replies count from the interval on that follows the first unpicked call: those that came in
// the same interval may be from before it.
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
