package selection

import (
	"math"
	"time"
)

const (
	// leastAhead is the least work that a server may have before it when it gets a call, in seconds. With less, it would idle for the
	// time in which a call is decided on and travels.
	leastAhead = 0.1
	// partAhead is that work as a part of a mean call's. Half a call is enough that a server whose speed is not known to the
	// percent has the next call when it has done one. With a whole one, the mean time to first token of an hour of a real trace at
	// twice the speed that 8 servers can serve is a quarter longer, with as much served.
	partAhead = 0.5
	// knownSeconds is how long servers must have been observed for their speeds to count as known, in seconds of prefill.
	knownSeconds = 5
)

// Soon is how long a call may wait at an endpoint for its prefill to begin, if it is sent there now and not later.
func (s *State) Soon() time.Duration {
	return seconds(max(leastAhead, partAhead*s.MeanTokens()/s.meanRate))
}

// Begins returns how long a call with so many uncached tokens that is sent to endpoint n now would wait there for its prefill to begin: for the queue, for KV memory and,
// where the endpoint sheds calls, until it is asked again. The queue counts as empty where it is a guess, as the endpoint was not read lately,
// unless the endpoint is new and will be read soon. It also does where the picker has no call there: whatever a server says of itself,
// and whoever else calls it, it gets one call after the other. An endpoint that fails or is silent does not begin with another one.
func (s *State) Begins(n int32, now time.Duration, uncached float64) time.Duration {
	h, t := &s.hot[n], now.Seconds()
	if h.own > 0 && s.Fails(n, now) {
		return seconds(math.Inf(1))
	}
	wait := max(0, s.health[n].shed.until-t)
	if h.own > 0 && s.read(n, t) {
		queue := max(0, h.empty-t)
		queue += max(0, queue+uncached*s.density*h.perToken-h.room)
		wait = max(wait, queue)
	}
	return seconds(wait)
}

// read reports whether the queue of endpoint n is known: it was read lately, or is new and will be.
func (s *State) read(n int32, t float64) bool {
	return weight(t-s.loads[n].reading.at) > 0 || t-s.health[n].joined < settling
}

// Idle reports whether one of the endpoints would begin with another call within a time, so that the pool has less to do than it can. Endpoints
// count whose queue is known, that are well, and that do not have more calls than they may.
func (s *State) Idle(members []int32, now, within time.Duration) bool {
	calls := 0.0
	for _, n := range members {
		calls += float64(s.hot[n].own)
	}
	most := max(batch, s.settings.Spread*calls/float64(len(members)))
	for _, n := range members {
		if s.read(n, now.Seconds()) && float64(s.hot[n].own) < most && !s.Fails(n, now) && s.Begins(n, now, 1) <= within {
			return true
		}
	}
	return false
}

// Fails reports whether endpoint n fails or is silent.
func (s *State) Fails(n int32, now time.Duration) bool {
	_, by := s.illness(n, now.Seconds())
	return by >= silent
}

// SpeedKnown reports whether the endpoints' speeds were observed long enough that a call may be refused for its expected time.
func (s *State) SpeedKnown() bool {
	sum := 0.0
	for i := range s.observed {
		sum += s.observed[i].seconds
	}
	return sum >= knownSeconds+assumedSeconds
}

// MeanRate is the pool's prefill speed of an endpoint, in tokens a second.
func (s *State) MeanRate() float64 { return s.meanRate }

// Waiting says how much work waits at the picker for the endpoints, in tokens to prefill.
func (s *State) Waiting(tokens float64) { s.waiting = tokens }

// supposed is what an endpoint was before a call was supposed to be there.
type supposed struct {
	n      int32
	before hot
}

// Suppose makes picks take endpoint n to have another call, with so many tokens to prefill, until Unsuppose.
func (s *State) Suppose(n int32, now time.Duration, work float64) {
	h, t := &s.hot[n], now.Seconds()
	s.supposed = append(s.supposed, supposed{n, *h})
	h.setQueue(t, h.queue(t)+max(1, work))
	h.own++
	h.calls++
}

// Unsuppose takes back all that was supposed.
func (s *State) Unsuppose() {
	for i := len(s.supposed) - 1; i >= 0; i-- {
		s.hot[s.supposed[i].n] = s.supposed[i].before
	}
	s.supposed = s.supposed[:0]
}

func seconds(s float64) time.Duration {
	return time.Duration(min(s, math.MaxInt32) * float64(time.Second))
}

// Due returns when the first token of a call was expected when it was picked, on the pool's clock.
func (s *State) Due(c *Claim) time.Duration { return seconds(c.place.due) }
