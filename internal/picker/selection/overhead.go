package selection

import "math"

const (
	// overheadMemory is the time after which what was observed of a call's overhead weighs 1/e, in seconds.
	overheadMemory = 60
	// usualOverhead is what a call is taken to cost beside its tokens as far as observations do not show it, in tokens to
	// prefill: calls of one length show nothing of it. It weighs as much as one observation.
	usualOverhead = callTokens
	// Once there are as many observations as steady, one can show no more than unlikely times the time that was expected, and no
	// less than that part of it.
	steady, unlikely = 10, 2
	// mostOverhead bounds a call's overhead, in tokens to prefill.
	mostOverhead = 1024
)

// overhead is what a call costs a server beside its tokens where it comes to an empty queue: the step that prefills it takes
// some time however short the prompt is, and the step before must end. With a seconds for that and b for a token, n tokens take
// a + bn. The sums are those of the method of least squares for the error (a + bn - t)/√t of times t, with 1/√t as u and n/√t as
// v. They decay.
type overhead struct {
	weight, sum float64 // the number of observations, and their tokens
	uu, uv, vv  float64
	at          float64 // when the sums were last decayed
}

// observe notes that a server of the pool's mean speed prefilled so many tokens without a pause in a time, in seconds.
func (o *overhead) observe(now, tokens, seconds float64) {
	keep := math.Exp(-max(0, now-o.at) / overheadMemory)
	o.uu = o.uu*keep + 1/seconds
	o.uv = o.uv*keep + tokens/seconds
	o.vv = o.vv*keep + tokens*tokens/seconds
	o.sum = o.sum*keep + tokens
	o.weight = o.weight*keep + 1
	o.at = max(now, o.at)
}

// tokens returns a call's overhead as the number of tokens that take as long; 0 where nothing was observed.
func (o *overhead) tokens() float64 {
	// One more observation, of their mean weight, says that a is usualOverhead times b.
	k := o.uu / o.weight
	uu, uv, vv := o.uu+k, o.uv-k*usualOverhead, o.vv+k*usualOverhead*usualOverhead
	det := uu*vv - uv*uv
	if !(det > 0) {
		return 0
	}
	a, b := (o.weight*vv-o.sum*uv)/det, (uu*o.sum-uv*o.weight)/det
	switch {
	case !(a > 0):
		return 0
	case !(b > 0) || a > b*mostOverhead:
		return mostOverhead
	}
	return a / b
}
