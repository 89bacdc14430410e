package selection

import (
	"cmp"
	"math"
	"slices"
)

// speed is what was observed of an endpoint's prefill, as two sums that decay: tokens prefilled, and the time it took.
type speed struct {
	tokens, seconds float64
	at              float64 // when the sums were last decayed
}

const (
	// speedMemory is the time after which an observation of a speed weighs 1/e, in seconds.
	speedMemory = 30
	// alike is the standard deviation of the logarithm of the speed that is expected between equal endpoints after a long
	// observation. After priorSeconds of observation its square is twice as much.
	alike        = 0.3
	priorSeconds = 2
	// distinct is how many standard deviations an endpoint must be apart from the mean to have a speed of its own: of many
	// endpoints some are one apart by chance, and more so in overload, where what is taken to be cached is often evicted.
	distinct = 1.5
	// surprise is how many times faster or slower than expected one observation can show an endpoint to be. A call that
	// waits for KV memory, or whose prompt was not cached as expected, does not measure a speed.
	surprise = 4

	// leastPrefill is how many tokens calls must prefill on average for their time to tell a speed. With fewer, it is mostly
	// that of one step.
	leastPrefill = 4 * BlockTokens
	// asExpected is how much more or less of a prompt than expected a server may compute for it to count for the curve: a prompt
	// that was evicted would look like a long one.
	asExpected = 0.25
	// guessedWeight is the weight of a speed where it is a guess how calls overlapped, beside one of the picker's own calls.
	guessedWeight = 0.25

	slowest, fastest = 1, 1e7 // the bounds of a prefill speed, in tokens a second
)

// observe notes that so many tokens were prefilled in a time, where perToken was the time expected for each. The sums
// are cut to speedMemory, as no observation may weigh more than the time that is remembered.
func (v *speed) observe(now, tokens, seconds, perToken float64) {
	v.forget(now)
	expected := tokens * perToken
	v.tokens += tokens
	v.seconds += min(max(seconds, expected/surprise), expected*surprise)
	if v.seconds > speedMemory {
		v.tokens *= speedMemory / v.seconds
		v.seconds = speedMemory
	}
}

func (v *speed) forget(now float64) {
	keep := math.Exp(-max(0, now-v.at) / speedMemory)
	v.tokens *= keep
	v.seconds *= keep
	v.at = max(now, v.at)
}

// rate returns the speed in tokens a second, given the mean speed of the pool. An endpoint whose distance from the
// mean may be chance gets the mean. One further away keeps the more of its own speed, the further it is (the positive
// part of James and Stein's estimator). Nothing else is mixed: an endpoint that is taken to be a tenth slower than it
// is costs a long prompt more than a cached prefix of thousands of tokens saves, so that small errors empty caches.
func (v *speed) rate(mean float64) float64 {
	rate := mean
	if v.tokens > 0 && v.seconds > 0 {
		apart := math.Log(v.tokens / v.seconds / mean)
		if noise := alike * alike * (1 + priorSeconds/v.seconds); apart*apart > distinct*distinct*noise {
			rate *= math.Exp(apart * (1 - noise/(apart*apart)))
		}
	}
	return min(max(rate, slowest), fastest)
}

// setSpeed updates endpoint n's speed for picks. The number of tokens that wait stays the same.
func (s *State) setSpeed(n int32, now float64) {
	h := &s.hot[n]
	queue := h.queue(now)
	h.rate = s.loads[n].speed.rate(s.meanRate)
	h.perToken = 1 / h.rate
	h.setQueue(now, queue)
}

// learnFromFirstTokens takes endpoint n's speed from what it prefilled between two readings.
func (s *State) learnFromFirstTokens(n int32, now float64, p prefills) {
	if !(p.seconds > 0) || p.loads {
		return
	}
	weight, uncached := 1.0, p.tried.tokens
	if p.own {
		s.learnCurve(n, now, p)
	} else {
		weight, uncached = guessedWeight, p.tokens
		p.tokens = s.workOfOthers(p.tokens, float64(p.calls)) + s.curve.perCall
	}
	if uncached < leastPrefill*float64(p.calls) {
		return
	}
	s.loads[n].speed.observe(now, weight*p.tokens, weight*p.seconds, s.hot[n].perToken)
	s.setSpeed(n, now)
}

// workOfOthers is the work of calls of others with so many uncached tokens together, of which nothing else is known.
func (s *State) workOfOthers(tokens, calls float64) float64 {
	each := tokens / max(calls, 1)
	return calls * s.curve.work(each, each)
}

// learnCurve takes the pool's curve from what endpoint n prefilled without a pause. An endpoint whose speed is far from the
// pool's is left out, as its counters may lie, unless no other was observed. Attention is learned where the server counts what it
// computed: one that caches nothing would else look like one with much of it.
func (s *State) learnCurve(n int32, now float64, p prefills) {
	slowness := 1.0
	if len(s.observed) > 2 { // the assumed speed is one of them
		slowness = s.hot[n].perToken * s.meanRate
	}
	if slowness < 1.0/outlier || slowness > outlier {
		return
	}
	if p.computed > 0 && math.Abs(p.computed-p.tried.tokens) > asExpected*p.tried.tokens+BlockTokens*float64(p.calls) {
		return
	}
	starts := max(1, p.starts)
	one := prefilled{tokens: p.tried.tokens / starts, pairs: p.tried.pairs / starts, running: p.tried.running / starts}
	if p.computed <= 0 {
		one.pairs = 0
	}
	expected, within := s.fit.expects(one), float64(unlikely)
	if c := &s.curve; !s.fit.trusted {
		expected, within = (one.tokens+c.context*one.pairs+c.perRunning*one.running+c.perCall)/s.meanRate, surprise
	}
	expected = max(expected, 1/s.meanRate)
	s.fit.observe(now, one, min(max(p.seconds/starts/slowness, expected/within), expected*within))
}

// bend takes the curve that was learned last. What is known of speeds holds for tokens like those of late.
func (s *State) bend() {
	if s.fit.trusted && s.fit.weight < steady { // few observations do not outweigh what many told
		return
	}
	c, ok := s.fit.curve()
	if !ok {
		return
	}
	density := s.fit.density(c.context)
	s.setCurve(c, density/s.fit.density(s.curve.context))
	s.density = density
}

// setCurve takes a curve by which tokens like those of late take so many times as long as by the one before.
func (s *State) setCurve(c curve, times float64) {
	s.curve = c
	if times != 1 {
		for n := range s.loads {
			s.loads[n].speed.tokens *= times
		}
	}
}

// ageSpeeds decays the observations of speeds, and takes the curve and the pool's mean speed.
func (s *State) ageSpeeds(now float64, members []int32) {
	s.bend()
	s.observed = append(s.observed[:0], observedSpeed{rate: s.settings.PrefillRate, seconds: assumedSeconds, vote: assumedSeconds})
	for _, n := range members {
		v := &s.loads[n].speed
		v.forget(now)
		if v.tokens > 0 && v.seconds > 0 {
			s.observed = append(s.observed, observedSpeed{
				rate: v.tokens / v.seconds, seconds: min(v.seconds, mostSeconds), vote: min(v.seconds, mostVote),
			})
		}
	}
	s.meanRate = meanRate(s.observed)
	for _, n := range members {
		s.setSpeed(n, now)
	}
}

const (
	// assumedSeconds is the weight of the assumed speed in the pool's mean, in seconds of observation.
	assumedSeconds = 1
	// mostSeconds is the greatest weight of one endpoint in that mean, in seconds of observation.
	mostSeconds = 5
	// mostVote is the greatest weight of one endpoint in the pool's median, in seconds of observation. It is less than the
	// assumed speed's weight: one endpoint alone does not change the speed assumed of the others, two do.
	mostVote = 2.0 / 3
	// outlier is how many times faster or slower than the median an endpoint must be to be left out of the pool's mean.
	outlier = 2
)

// observedSpeed is one endpoint's part in the pool's mean: its observed speed, the weight of that in the mean, and the
// weight in the median.
type observedSpeed struct{ rate, seconds, vote float64 }

// meanRate returns the speed of a pool: the mean over the endpoints that are not far from the median, so that neither a
// slow endpoint nor a lying metrics page changes what the others are taken for. It sorts the endpoints.
func meanRate(seen []observedSpeed) float64 {
	slices.SortFunc(seen, func(a, b observedSpeed) int { return cmp.Compare(a.rate, b.rate) })
	votes := 0.0
	for i := range seen {
		votes += seen[i].vote
	}
	median := 0.0
	for i, half := 0, votes/2; half > 0 && i < len(seen); i++ {
		median = seen[i].rate
		half -= seen[i].vote
	}
	var tokens, seconds float64
	for i := range seen {
		if v := &seen[i]; v.rate >= median/outlier && v.rate <= median*outlier {
			tokens += v.rate * v.seconds
			seconds += v.seconds
		}
	}
	return tokens / seconds
}
