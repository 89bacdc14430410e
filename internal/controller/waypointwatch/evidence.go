package waypointwatch

import "time"

// evidence counts a pool's calls between two readings.
type evidence struct {
	// asked counts calls for which the waypoint asked the picker, or tried to.
	asked int64
	// unpicked counts calls that ended without a pick: served or refused, by the pool's failure mode.
	unpicked int64
	// timeouts counts unpicked calls for which the picker did not answer in time.
	timeouts int64
	// replies counts messages from the picker.
	replies int64
}

func (e evidence) plus(o evidence) evidence {
	return evidence{e.asked + o.asked, e.unpicked + o.unpicked, e.timeouts + o.timeouts, e.replies + o.replies}
}

// history is the state that is kept between readings of one pool's counters at one pod.
type history struct {
	last counters
	read time.Time
	// open is the number of open streams minus the number that failed while they were opened, as Envoy counts those as
	// closed and never as started. Only such a failure takes open below lowest, its lowest value so far.
	open, lowest int64
	// unreplied is the number of messages without a reply at the last reading. Envoy counts a message's timeout later than
	// the message.
	unreplied int64
}

// firstReading handles the first reading of a pod. The counts from before are no evidence of how calls are picked now, unless the
// picker has never replied: then nothing has changed since.
func firstReading(c counters) (history, evidence) {
	h := history{last: c}
	h.open = c.started - c.closed - max(0, c.failed-c.allowed)
	h.lowest = min(0, h.open)
	if ended := max(c.allowed, c.failed+c.timeouts); c.received == 0 && ended > 0 {
		return h, evidence{asked: max(c.started, ended), unpicked: ended, timeouts: min(c.timeouts, ended)}
	}
	return h, evidence{}
}

// next makes the evidence since the last reading. If a counter fell, the proxy has restarted.
//
// Not every call whose stream breaks is unpicked. A stream stays open until its call's answer ends, so a picker that restarts
// breaks the streams of calls that it picked long ago, perhaps hundreds. On these streams each message has its reply. An
// unpicked call either has a message without a reply, or its stream never started. With duplex pickers, messages and
// replies do not correspond, so each broken stream counts as an unpicked call. The call breaks with such a stream
// anyway.
func (h *history) next(c counters, duplex bool) evidence {
	if c.fell(h.last) {
		*h = history{}
	}
	d := c.minus(h.last)
	h.last = c
	ended := max(d.allowed, d.failed+d.timeouts)
	h.open += d.started - d.closed - max(0, d.failed-d.allowed)
	unopened := min(max(0, h.lowest-h.open), ended)
	h.lowest = min(h.lowest, h.open)
	out := evidence{asked: d.started + unopened, unpicked: ended, replies: d.received}
	if !duplex {
		h.unreplied = max(0, h.unreplied+d.sent-d.received)
		lost := min(h.unreplied, ended-unopened)
		h.unreplied = min(h.unreplied-lost, max(0, d.sent-d.received))
		out.unpicked = unopened + lost
	}
	out.asked = max(out.asked, out.unpicked)
	out.timeouts = min(d.timeouts, out.unpicked)
	return out
}

func (c counters) minus(o counters) counters {
	return counters{
		started: c.started - o.started, closed: c.closed - o.closed, failed: c.failed - o.failed, timeouts: c.timeouts - o.timeouts,
		allowed: c.allowed - o.allowed, sent: c.sent - o.sent, received: c.received - o.received,
	}
}

func (c counters) fell(from counters) bool {
	d := c.minus(from)
	return min(d.started, d.closed, d.failed, d.timeouts, d.allowed, d.sent, d.received) < 0
}

// called reports whether the waypoint has ever asked the picker, or tried to.
func (c counters) called() bool { return c.started > 0 || c.failed > 0 || c.allowed > 0 }
