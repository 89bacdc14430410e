package poolstate

import (
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
)

// observedMemory is the time, in seconds, after which what an endpoint counted weighs 1/e in its averages.
const observedMemory = 60

// observed is what an endpoint reported of itself, for people to read: its last reading, and averages over recent ones.
type observed struct {
	reading modelmetrics.Reading
	at      time.Duration // when it was taken, on the pool's clock

	// Sums that decay, of the server's counters: prompt tokens looked up in its prefix cache and found there, first
	// tokens, and the times to them.
	queries, hits, firstTokens, firstTokenSeconds float64
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
		if last.Restarts == r.Restarts {
			o.queries += float64(max(0, r.CacheQueries-last.CacheQueries))
			o.hits += float64(max(0, r.CacheHits-last.CacheHits))
			o.firstTokens += float64(max(0, r.FirstTokens-last.FirstTokens))
			o.firstTokenSeconds += max(0, r.FirstTokenSeconds-last.FirstTokenSeconds)
		}
	}
	o.reading, o.at = r, at
}

// cachedShare is the share of prompt tokens found in the cache; NaN where none were looked up lately.
func (o *observed) cachedShare() float64 { return ratio(o.hits, o.queries) }

// firstToken is the mean time to first token in seconds; NaN where there was none lately.
func (o *observed) firstToken() float64 { return ratio(o.firstTokenSeconds, o.firstTokens) }

// ratio is NaN where the decayed divisor is below 1: an average from long ago says nothing of now.
func ratio(a, b float64) float64 {
	if b < 1 {
		return math.NaN()
	}
	return a / b
}
