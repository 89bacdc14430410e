package selection

import (
	"math"
	"time"
)

// Learned is what was observed of an endpoint's prefill, to be given to another picker.
type Learned struct {
	// Tokens like those of late were prefilled in so many Seconds; both have lost weight with time.
	Tokens, Seconds float64
}

// Learned returns what was observed of endpoint n's prefill.
func (s *State) Learned(n int32, now time.Duration) Learned {
	v := &s.loads[n].speed
	v.forget(now.Seconds())
	return Learned{v.tokens / s.density, v.seconds}
}

// Learn takes what another picker observed of endpoint n's prefill, unless more was observed here. It counts from the next
// call of Age on.
func (s *State) Learn(n int32, l Learned, now time.Duration) {
	if now.Seconds() > s.fit.at+forgotten*curveMemory && s.fit.weight > 0 { // what was learned of the curve is about other prompts
		s.setCurve(curve{}, 1/s.density)
		s.fit, s.density = curveFit{}, 1
	}
	v := &s.loads[n].speed
	v.forget(now.Seconds())
	rate := l.Tokens * s.density / l.Seconds
	if !(l.Seconds > v.seconds && rate >= slowest && rate <= fastest) {
		return
	}
	seconds := math.Min(l.Seconds, speedMemory)
	v.tokens, v.seconds = rate*seconds, seconds
}
