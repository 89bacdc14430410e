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

// computed returns how many tokens a server has prefilled that end a prompt, of which so many are not cached, when it has done so much
// of their work: the inverse of work.
func (c *curve) computed(prompt, uncached, done float64) float64 {
	first := 1 + c.context*(prompt-uncached)
	return min(uncached, 2*max(0, done)/(first+math.Sqrt(first*first+2*c.context*max(0, done))))
}

const (
	// curveMemory is the time after which what was observed of the curve weighs 1/e, in seconds.
	curveMemory = 60
	// forgotten is how many times that time it takes until nothing of it counts any more.
	forgotten = 3
	// usualPerCall is what a call is taken to cost beside its tokens where observations do not show it, in tokens to prefill.
	usualPerCall = callTokens
	// Once there are as many observations as steady, one can show no more than unlikely times the time that was expected, and no
	// less than that part of it.
	steady, unlikely = 10, 2
	// hint is the weight, in observations, of the usual curve: calls that are alike show nothing of another.
	hint = 0.05
	// clearly is how many standard deviations a part of the curve must be apart from the usual one.
	clearly = 3
	// The bounds of the curve. A GPU's attention to 1,000 tokens takes as long as the rest of a token's prefill at the very least;
	// for usual models it is some 30,000 tokens.
	mostPerCall, mostPerRunning, mostContext = 1024, 256, 1.0 / 1000
)

// curveFit finds the curve by the method of least squares, from the times t of prefills: t = a + b·(tokens + usualPerCall) + c·pairs
// + d·running, with the error divided by √t. pairs are, for each of the tokens, those before it in its prompt. The sums decay.
type curveFit struct {
	weight  float64       // the number of observations
	sums    [4]float64    // of their values: 1, tokens with usualPerCall, pairs and running
	seconds float64       // of their times
	moment  [4][4]float64 // of the products of an observation's values, divided by its time
	found   [4]float64    // a, b, c and d, as curve found them last
	trusted bool          // that was from steady observations at least
	at      float64       // when the sums were last decayed
}

// prefilled is what a server prefilled without a pause, after it had nothing to prefill.
type prefilled struct{ tokens, pairs, running float64 }

func (p *prefilled) add(t place) {
	p.tokens += t.uncached
	p.pairs += t.uncached * (t.prompt - t.uncached/2)
	p.running += t.running
}

func (p prefilled) values() [4]float64 {
	return [4]float64{1, p.tokens + usualPerCall, p.pairs, p.running}
}

// observe notes that a server of the pool's mean speed took so many seconds for a prefill.
func (f *curveFit) observe(now float64, p prefilled, seconds float64) {
	keep := math.Exp(-max(0, now-f.at) / curveMemory)
	x := p.values()
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
func (f *curveFit) expects(p prefilled) (t float64) {
	for i, x := range p.values() {
		t += f.found[i] * x
	}
	return t
}

// curve returns the curve that fits best; ok is false where the observations tell of none. No part of it is negative.
func (f *curveFit) curve() (c curve, ok bool) {
	if !(f.weight > 0) || !(f.moment[1][1] > 0) {
		return curve{}, false
	}
	m := f.moment
	for _, i := range parts { // a hint of the mean weight says that the part is 0
		mean := f.sums[i] / f.weight
		m[i][i] += hint * f.moment[0][0] / f.weight * mean * mean
	}
	x := f.clear(&m)
	f.found, f.trusted = x, f.weight >= steady
	if !(x[1] > 0) { // all take one step, however long they are
		return curve{}, false
	}
	part := func(time, most float64) float64 {
		if tokens := min(time/x[1], most); tokens > rounding*most {
			return tokens
		}
		return 0
	}
	return curve{perCall: part(x[0]+usualPerCall*x[1], mostPerCall), context: part(x[2], mostContext), perRunning: part(x[3], mostPerRunning)}, true
}

// parts are the values of a solution beside b.
var parts = [...]int{2, 3, 0}

// density is what a mean token takes, in tokens without anything before them.
func (f *curveFit) density(context float64) float64 {
	tokens := f.sums[1] - usualPerCall*f.sums[0]
	if !(tokens > 0) {
		return 1
	}
	return 1 + context*f.sums[2]/tokens
}

// clear returns the solution that has each part only where it clearly explains more of the times: small errors of the curve
// send long prompts away from their caches, and calls that are alike tell nothing of it.
func (f *curveFit) clear(m *[4][4]float64) [4]float64 {
	var out [4]bool
	x := solve(m, &f.sums, out)
	for _, i := range parts {
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

// solve solves m·x = y for a positive definite m, without the values that are out. Values but the first that come out below 0 are
// left out too, one after the other.
func solve(m *[4][4]float64, y *[4]float64, out [4]bool) (x [4]float64) {
	for range m {
		x = eliminate(*m, *y, out)
		least := -1
		for i := 1; i < len(x); i++ {
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
