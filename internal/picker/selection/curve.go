package selection

import "math"

// curve is what a server of the pool takes for a prefill beside its tokens, in tokens that take as long.
type curve struct {
	// perCall is what a call takes that comes to an empty queue: the step that prefills it takes some time however short the
	// prompt is, and the step before must end.
	perCall float64
	// perRunning is what such a call takes for each call that the server answers then, as their tokens are made in the same
	// step.
	perRunning float64
	// context is what a token takes for each token before it in its prompt: attention.
	context float64
}

// work is how long so many tokens take that end a prompt and are not cached, in tokens without anything before them.
func (c *curve) work(prompt, uncached float64) float64 {
	return uncached * (1 + c.context*(prompt-uncached/2))
}

const (
	// curveMemory is the time after which what was observed of the curve weighs 1/e, in seconds.
	curveMemory = 60
	// usualPerCall is what a call is taken to cost beside its tokens as far as observations do not show it, in tokens to
	// prefill: calls of one length show nothing of it.
	usualPerCall = callTokens
	// Once there are as many observations as steady, one can show no more than unlikely times the time that was expected, and no
	// less than that part of it.
	steady, unlikely = 10, 2
	// hint is the weight of that, in observations, and of there being nothing else.
	hint = 0.05
	// clearly is how many standard deviations a part of the curve must be apart from 0.
	clearly = 3
	// The bounds of the curve. A GPU's attention to 1,000 tokens takes as long as the rest of a token's prefill at the very least;
	// for usual models it is some 30,000 tokens.
	mostPerCall, mostPerRunning, mostContext = 1024, 256, 1.0 / 1000
)

// curveFit finds the curve by the method of least squares, from the times t of prefills: t = a + b·tokens + c·pairs + d·running,
// with the error divided by √t. pairs are, for each of the tokens, those before it in its prompt. The sums decay.
type curveFit struct {
	weight  float64       // the number of observations
	sums    [4]float64    // of their values: 1, tokens, pairs and running
	seconds float64       // of their times
	moment  [4][4]float64 // of the products of an observation's values, divided by its time
	found   [4]float64    // a, b, c and d, as curve found them last
	at      float64       // when the sums were last decayed
}

// prefilled is what a server prefilled without a pause, after it had nothing to prefill.
type prefilled struct{ tokens, pairs, running float64 }

func (p *prefilled) add(t place) {
	p.tokens += t.uncached
	p.pairs += t.uncached * (t.prompt - t.uncached/2)
	p.running += t.running
}

// observe notes that a server of the pool's mean speed took so many seconds for a prefill.
func (f *curveFit) observe(now float64, p prefilled, seconds float64) {
	keep := math.Exp(-max(0, now-f.at) / curveMemory)
	x := [4]float64{1, p.tokens, p.pairs, p.running}
	for i := range x {
		f.sums[i] = f.sums[i]*keep + x[i]
		for j := range x {
			f.moment[i][j] = f.moment[i][j]*keep + x[i]*x[j]/seconds
		}
	}
	f.seconds = f.seconds*keep + seconds
	f.weight = f.weight*keep + 1
	f.at = max(now, f.at)
}

// expects returns how long a prefill was expected to take, in seconds.
func (f *curveFit) expects(p prefilled) float64 {
	return f.found[0] + f.found[1]*p.tokens + f.found[2]*p.pairs + f.found[3]*p.running
}

// curve returns the curve that fits best; ok is false where nothing was observed. No part of it is negative.
func (f *curveFit) curve() (c curve, ok bool) {
	if !(f.weight > 0) || !(f.moment[1][1] > 0) {
		return curve{}, false
	}
	// Hints say that a is usualPerCall times b, and that c and d are 0.
	m, k := f.moment, hint*f.moment[0][0]/f.weight
	m[0][0] += k
	m[0][1] -= k * usualPerCall
	m[1][0] -= k * usualPerCall
	m[1][1] += k * usualPerCall * usualPerCall
	for i := 2; i < len(m); i++ {
		mean := f.sums[i] / f.weight
		m[i][i] += k * mean * mean
	}
	x := f.clear(&m)
	f.found = x
	b := x[1]
	part := func(i int, most float64) float64 {
		if !(x[i] < most*b) { // b may be 0
			return most
		}
		return x[i] / b
	}
	return curve{perCall: part(0, mostPerCall), context: part(2, mostContext), perRunning: part(3, mostPerRunning)}, true
}

// density is what a mean token takes, in tokens without anything before them.
func (f *curveFit) density(context float64) float64 {
	if !(f.sums[1] > 0) {
		return 1
	}
	return 1 + context*f.sums[2]/f.sums[1]
}

// clear returns the solution that has c and d only where they clearly explain more of the times: small errors of the curve
// send long prompts away from their caches.
func (f *curveFit) clear(m *[4][4]float64) [4]float64 {
	var out [4]bool
	x := solve(m, &f.sums, out)
	for _, i := range [...]int{2, 3} {
		less := out
		less[i] = true
		without := solve(m, &f.sums, less)
		if left := f.left(&x); f.left(&without)-left < clearly*clearly*left/f.weight {
			x, out = without, less
		}
	}
	return x
}

// left returns the sum of the squared errors that a solution leaves.
func (f *curveFit) left(x *[4]float64) float64 {
	sum := f.seconds
	for i := range x {
		sum -= x[i] * f.sums[i]
	}
	return sum
}

// solve solves m·x = y for a positive definite m, without the values that are out. Values that come out below 0 are left out too,
// one after the other.
func solve(m *[4][4]float64, y *[4]float64, out [4]bool) (x [4]float64) {
	for range m {
		x = eliminate(*m, *y, out)
		least := -1
		for i := range x {
			if x[i] < 0 && (least < 0 || x[i]*y[i] < x[least]*y[least]) {
				least = i
			}
		}
		if least < 0 {
			break
		}
		out[least], x[least] = true, 0
	}
	return x
}

// eliminate solves m·x = y by elimination. Values that are out, or of which m says nothing, are 0.
func eliminate(m [4][4]float64, y [4]float64, out [4]bool) (x [4]float64) {
	for i := range m {
		scale := m[i][i]
		for k := range i {
			if out[k] {
				continue
			}
			by := m[i][k] / m[k][k]
			for j := range m {
				m[i][j] -= by * m[k][j]
			}
			y[i] -= by * y[k]
		}
		out[i] = out[i] || !(m[i][i] > 1e-12*scale)
	}
	for i := len(m) - 1; i >= 0; i-- {
		if out[i] {
			continue
		}
		x[i] = y[i]
		for j := i + 1; j < len(m); j++ {
			x[i] -= m[i][j] * x[j]
		}
		x[i] /= m[i][i]
	}
	return x
}
