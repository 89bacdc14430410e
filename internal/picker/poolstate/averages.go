package poolstate

import (
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
)

// observedMemory is the time after which what an endpoint counted weighs 1/e in its averages, in seconds.
const observedMemory = 60

// observed is what an endpoint told of itself, for people to see: its last reading, and averages over those of late.
type observed struct {
	reading modelmetrics.Reading
	at      time.Duration // when it was taken, on the pool's clock

	// Sums that forget, of what the server counted: prompt tokens looked up in its prefix cache and found there, first
	// tokens and the time until them.
	queries, hits, firstTokens, firstTokenSeconds float64
}

// take takes in a reading, and what was counted since the last where the server has not started anew in between.
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

// cachedShare is the share of prompt tokens found in the cache; NaN where none were looked up of late.
func (o *observed) cachedShare() float64 { return ratio(o.hits, o.queries) }

// firstToken is the mean time to first token in seconds; NaN where there was none of late.
func (o *observed) firstToken() float64 { return ratio(o.firstTokenSeconds, o.firstTokens) }

// ratio is NaN where less than one is left of what is divided by: an average of long ago is none of now.
func ratio(a, b float64) float64 {
	if b < 1 {
		return math.NaN()
	}
	return a / b
}
