package selection

import "time"

// Settings are what an operator can set of the rule. The defaults fit an 8B model on one H100 as well as a 32B model on
// two. Speeds are learned while there are calls, within some seconds where servers count times to first tokens, and
// else once there is a queue; until then, and after minutes without calls, the assumed speed holds.
type Settings struct {
	// PrefillRate is an endpoint's prefill speed in tokens a second until its own is learned; it must be positive.
	PrefillRate float64
	// CacheBias multiplies what a token to prefill is taken to cost others: over 1 calls stay longer with their
	// prefix, at 0 each goes where its own first token comes soonest.
	CacheBias float64
	// Spread bounds an endpoint's calls in flight to this multiple of the mean over the candidates; at least 1.
	Spread float64
	// AdapterLoad is what loading an adapter costs.
	AdapterLoad time.Duration
	// AvoidFor is how long an endpoint is avoided after its first failure; the time doubles with each that follows,
	// up to AvoidMax.
	AvoidFor, AvoidMax time.Duration
}

// Defaults are the settings of a pool that sets nothing.
func Defaults() Settings {
	return Settings{
		PrefillRate: 8000,
		CacheBias:   1,
		Spread:      2,
		AdapterLoad: time.Second,
		AvoidFor:    time.Second,
		AvoidMax:    time.Minute,
	}
}
