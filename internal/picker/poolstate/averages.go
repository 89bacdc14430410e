package poolstate

import (
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// observedMemory is the time, in seconds, after which what an endpoint counted weighs 1/e in its averages.
const observedMemory = 60

// mostTimes bounds how many times as long as expected, or as short, first tokens can have taken, whatever a server counts.
const mostTimes = 1000

// observed is what an endpoint reported of itself, for people to read: its last reading, and averages over recent ones.
type observed struct {
	reading modelmetrics.Reading
	at      time.Duration // when it was taken, on the pool's clock

	// Sums that decay, of the server's counters: prompt tokens looked up in its prefix cache and found there, first
	// tokens, and the times to them.
	queries, hits, firstTokens, firstTokenSeconds float64
	// Sums that decay, of the picker's own calls whose first tokens were followed: how many, and the logarithms of their
	// observed times to first token as multiples of the expected ones.
	followed, logTimes float64
}

// take adds a reading. It also adds what the server counted since the last reading, unless it restarted in between.
func (o *observed) take(r modelmetrics.Reading, at time.Duration) {
	last := o.reading
	if !last.At.IsZero() {
		if !r.At.After(last.At) {
			return
		}
		keep := math.Exp(-(at - o.at).Seconds() / observedMemory)
		o.queries, o.hits = o.queries*keep, o.hits*keep
		o.firstTokens, o.firstTokenSeconds = o.firstTokens*keep, o.firstTokenSeconds*keep
		o.followed, o.logTimes = o.followed*keep, o.logTimes*keep
		if last.Restarts == r.Restarts {
			o.queries += float64(max(0, r.CacheQueries-last.CacheQueries))
			o.hits += float64(max(0, r.CacheHits-last.CacheHits))
			o.firstTokens += float64(max(0, r.FirstTokens-last.FirstTokens))
			o.firstTokenSeconds += max(0, r.FirstTokenSeconds-last.FirstTokenSeconds)
		}
	}
	o.reading, o.at = r, at
}

// compare adds the times to first token that the last reading shows of followed calls. The calls have the ratio of their
// sums. Times without a ratio are left out, as a sum that is not finite would stay so for ever.
func (o *observed) compare(first selection.FirstTokens) {
	times := first.Observed / first.Expected
	if !(first.Expected > 0) || !(times > 0) || math.IsInf(times, 1) { // a comparison with NaN is false
		return
	}
	o.followed += float64(first.Calls)
	o.logTimes += float64(first.Calls) * math.Log(min(max(times, 1.0/mostTimes), mostTimes))
}

// cachedShare is the share of prompt tokens found in the cache; NaN where none were looked up lately.
func (o *observed) cachedShare() float64 { return ratio(o.hits, o.queries) }

// firstToken is the mean time to first token in seconds; NaN where there was none lately.
func (o *observed) firstToken() float64 { return ratio(o.firstTokenSeconds, o.firstTokens) }

// toExpected is the geometric mean of the followed calls' observed times to first token as multiples of the expected ones:
// twice as long and half as long make 1. It is NaN where no first token was followed lately, or the endpoint was never read.
func (o *observed) toExpected() float64 {
	if o == nil {
		return math.NaN()
	}
	return math.Exp(ratio(o.logTimes, o.followed))
}

// ratio is NaN where the decayed divisor is below 1: an average from long ago says nothing of now.
func ratio(a, b float64) float64 {
	if b < 1 {
		return math.NaN()
	}
	return a / b
}
