package selection

import (
	"cmp"
	"math"
	"slices"
)

// speed is what was seen of an endpoint's prefill, as two sums that forget: tokens prefilled, and the time that took.
type speed struct {
	tokens, seconds float64
	at              float64 // when the sums were right
}

const (
	// speedMemory is the time after which an observation of a speed weighs 1/e, in seconds.
	speedMemory = 30
	// alike is the standard deviation of the logarithm of the speed that is expected between equal endpoints after a long
	// observation. After priorSeconds of observation its square is twice as much.
	alike        = 0.3
	priorSeconds = 2
	// surprise is how many times faster or slower than it is taken to be one observation can show an endpoint to be. A
	// call that waits for memory, or whose prompt was not cached as expected, is no measure of a speed.
	surprise = 4

	slowest, fastest = 1, 1e7 // tokens a second; what is outside is no prefill speed
)

// observe notes that so many tokens were prefilled in a time, where perToken was the time expected for each. Whatever a
// server counts, it did not prefill for longer than is remembered.
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

// perToken is the time to prefill a token where the mean of the pool is known. An endpoint that is as far from the mean
// as its like can seem to be has the mean's speed, and one further away its own the more (the positive part of James and
// Stein's estimator). In between there is nothing: an endpoint that is taken to be a tenth slower than it is costs a
// long prompt more than a cached prefix of thousands of tokens saves, so that small errors empty caches.
func (v *speed) perToken(mean float64) float64 {
	rate := mean
	if v.tokens > 0 && v.seconds > 0 {
		apart := math.Log(v.tokens / v.seconds / mean)
		if noise := alike * alike * (1 + priorSeconds/v.seconds); apart*apart > noise {
			rate *= math.Exp(apart * (1 - noise/(apart*apart)))
		}
	}
	return 1 / min(max(rate, slowest), fastest)
}

// setSpeed brings what picks read of endpoint n's speed up to date. The tokens that wait stay the same.
func (s *State) setSpeed(n int32, now float64) {
	h := &s.hot[n]
	queue := h.queue(now)
	h.perToken = s.loads[n].speed.perToken(s.meanRate)
	h.setQueue(now, queue)
}

// ageSpeeds lets what was seen of speeds fade, and takes their mean.
func (s *State) ageSpeeds(now float64, members []int32) {
	s.seen = append(s.seen[:0], seenSpeed{rate: s.settings.PrefillRate, seconds: assumedSeconds, vote: assumedSeconds})
	for _, n := range members {
		v := &s.loads[n].speed
		v.forget(now)
		if v.tokens > 0 && v.seconds > 0 {
			s.seen = append(s.seen, seenSpeed{
				rate: v.tokens / v.seconds, seconds: min(v.seconds, mostSeconds), vote: min(v.seconds, mostVote),
			})
		}
	}
	s.meanRate = meanRate(s.seen)
	for _, n := range members {
		s.setSpeed(n, now)
	}
}

const (
	// assumedSeconds is how much observed time the assumed speed weighs as much as, in the pool's mean.
	assumedSeconds = 1
	// mostSeconds is the most that one endpoint weighs in that mean.
	mostSeconds = 5
	// mostVote is the most that one endpoint weighs where the pool's speed is looked for, in observed seconds. It is less
	// than the assumed speed weighs: one endpoint alone does not change what is thought of the others, two do.
	mostVote = 2.0 / 3
	// odd is how many times faster or slower than the median an endpoint is that has no part in the pool's mean.
	odd = 2
)

// seenSpeed is one endpoint's part in the pool's mean: the speed that was seen of it, what that weighs in the mean, and
// what in the median.
type seenSpeed struct{ rate, seconds, vote float64 }

// meanRate is the speed of a pool: the mean over the endpoints that are not far from the median, so that neither a slow
// endpoint nor a page that lies changes what the others are taken for. It sorts the endpoints.
func meanRate(seen []seenSpeed) float64 {
	slices.SortFunc(seen, func(a, b seenSpeed) int { return cmp.Compare(a.rate, b.rate) })
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
		if v := &seen[i]; v.rate >= median/odd && v.rate <= median*odd {
			tokens += v.rate * v.seconds
			seconds += v.seconds
		}
	}
	return tokens / seconds
}
