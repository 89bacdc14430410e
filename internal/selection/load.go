package selection

import "time"

// DefaultRate is the prefill speed taken for an endpoint whose own is not known, in tokens a second. It is the order
// of magnitude of an 8B model on one H100 and of a 32B model on two; as long as all endpoints share it, it only sets
// how fast a queue is taken to drain.
const DefaultRate = 8000

// Load is the work that one endpoint has from this picker. Its queue is a fluid: prompt tokens flow in with each
// reservation and drain at the endpoint's prefill speed, because neither a stream's first byte (sent before the
// prefill by some servers) nor its end (after the decoding) tells when a prompt was prefilled.
//
// Times are those of one monotonic clock with any origin.
type Load struct {
	// Rate is the endpoint's prefill speed in tokens a second; it must be positive.
	Rate float64
	// Requests are the calls in flight.
	Requests int
	// LastPick is the number of the pool's pick that last chose this endpoint; 0 where none did.
	LastPick uint64

	// arrived and drained count uncached prompt tokens since the endpoint is known; their difference is the queue.
	// Drained is right at the moment at.
	arrived, drained float64
	at               time.Duration
}

// Queue is the number of uncached prompt tokens that wait to be prefilled.
func (l *Load) Queue(now time.Duration) float64 {
	return max(0, l.arrived-l.drained-l.Rate*(now-l.at).Seconds())
}

// Ticket is one call's place in an endpoint's queue.
type Ticket struct{ start, end float64 }

// Tokens is the number of uncached prompt tokens that the call brought.
func (t Ticket) Tokens() float64 { return t.end - t.start }

// Add puts a call with so many uncached prompt tokens at the queue's end.
func (l *Load) Add(now time.Duration, tokens float64) Ticket {
	l.advance(now)
	t := Ticket{start: l.arrived, end: l.arrived + tokens}
	l.arrived = t.end
	l.Requests++
	return t
}

// Answered takes away a call that was answered to its end. Servers prefill in the order of arrival, so all that
// came before it is prefilled too: an endpoint faster than its rate is seen as empty again.
func (l *Load) Answered(now time.Duration, t Ticket) {
	l.advance(now)
	l.drained = max(l.drained, t.end)
	l.Requests--
}

// Withdraw takes away a call that this endpoint did not answer, with those of its tokens that still wait.
func (l *Load) Withdraw(now time.Duration, t Ticket) {
	l.advance(now)
	l.drained += max(0, t.end-max(l.drained, t.start))
	l.Requests--
}

func (l *Load) advance(now time.Duration) {
	l.drained = l.arrived - l.Queue(now)
	l.at = now
}
