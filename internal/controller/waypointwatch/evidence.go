package waypointwatch

// evidence is what became of a pool's calls between two readings.
type evidence struct {
	// asked are the calls for which the picker was asked or was to be asked.
	asked int64
	// unpicked are those that ended without a pick: they went on, or were refused, as the pool's failure mode says.
	unpicked int64
	// timeouts are those of the unpicked for which the picker was waited for in vain.
	timeouts int64
	// replies are the messages that came from the picker.
	replies int64
}

func (e evidence) plus(o evidence) evidence {
	return evidence{e.asked + o.asked, e.unpicked + o.unpicked, e.timeouts + o.timeouts, e.replies + o.replies}
}

// history is what is kept of one pool's counters at one pod between readings.
type history struct {
	last counters
	// open are the streams that are open, less those that failed while they were opened: these are closed, and never
	// were started. It falls below what it ever was before only by them.
	open, lowest int64
	// unreplied are messages that were without a reply at the last reading. A reply that takes too long is counted after
	// the message it was to reply to.
	unreplied int64
}

// begin takes up what a pod has counted before it was first read. That is no evidence of how calls fare now, but where the
// picker has never replied: then they fare as they did.
func begin(c counters) (history, evidence) {
	h := history{last: c}
	h.open = c.started - c.closed - max(0, c.failed-c.allowed)
	h.lowest = min(0, h.open)
	if ended := max(c.allowed, c.failed+c.timeouts); c.received == 0 && ended > 0 {
		return h, evidence{asked: max(c.started, ended), unpicked: ended, timeouts: min(c.timeouts, ended)}
	}
	return h, evidence{}
}

// next is what happened since the last reading. Counters that fell are those of a proxy that was started anew.
//
// Not every call that ends without its picker is an unpicked one. A stream stays open until its call's answer ends, so a picker
// that is restarted breaks the streams of calls that it has picked long ago, and there may be hundreds. They are told from
// the others where each message has its reply: an unpicked call either has a message without a reply, or
// its stream was never started. Of pickers that are sent bodies as they come (duplex) messages say nothing, and each
// stream that breaks counts: the call breaks with it.
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

// called reports whether the picker was ever asked, or was to be.
func (c counters) called() bool { return c.started > 0 || c.failed > 0 || c.allowed > 0 }
