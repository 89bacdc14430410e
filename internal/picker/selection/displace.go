package selection

import "math"

const (
	// reuseTime is the time, in seconds, within which all but 1/e of the cached prompts that are used again are used
	// again: a person's turn, with the answer to the one before.
	reuseTime = 120
	// displacedCost is what evicting a token used lately costs other calls, as a multiple of the time to prefill it.
	displacedCost = 0.5
)

// fill is how many tokens entered an endpoint's cache lately: a sum that decays.
type fill struct {
	tokens float64
	at     float64 // when the sum was last decayed
	size   float64 // of the cache, in tokens; 0 where it is not known
}

func (f *fill) add(now, tokens float64) {
	f.tokens = f.left(now) + tokens
	f.at = max(now, f.at)
}

func (f *fill) left(now float64) float64 { return f.tokens * math.Exp(-max(0, now-f.at)/reuseTime) }

// displaces returns the part of the evicted tokens, 0 to 1, that would be used again, judged by their age: a cache that
// took in as many tokens as it holds within that time evicts none that is older.
func (f *fill) displaces(now float64) float64 {
	if f.size <= 0 {
		return 0
	}
	return min(1, f.left(now)/f.size)
}

// setDisplaces updates the cost of displaced tokens that picks read of endpoint n.
func (s *State) setDisplaces(n int32, now float64) {
	s.hot[n].displaces = s.settings.CacheBias * displacedCost * s.loads[n].fill.displaces(now)
}
