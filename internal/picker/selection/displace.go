package selection

import "math"

const (
	// wanted is the time after which a prompt that was used is wanted again or never, 1/e of its like, in seconds: a
	// person's turn, with the answer to the one before.
	wanted = 120
	// displaced is what a token costs others that pushes out one lately used, as a multiple of its time.
	displaced = 0.5
)

// fill is how many tokens an endpoint's cache took in over the last time: a sum that forgets.
type fill struct {
	tokens float64
	at     float64 // when it was right
	size   float64 // of the cache, in tokens; 0 where it is not known
}

func (f *fill) add(now, tokens float64) {
	f.tokens = f.left(now) + tokens
	f.at = max(now, f.at)
}

func (f *fill) left(now float64) float64 { return f.tokens * math.Exp(-max(0, now-f.at)/wanted) }

// displaces is the part of what a new token pushes out, 0 to 1, that is wanted again as far as its age tells: a cache
// that took in as much as it holds within the time pushes out nothing older.
func (f *fill) displaces(now float64) float64 {
	if f.size <= 0 {
		return 0
	}
	return min(1, f.left(now)/f.size)
}

// setDisplaces brings what picks read of endpoint n's cache up to date.
func (s *State) setDisplaces(n int32, now float64) {
	s.hot[n].displaces = s.settings.CacheBias * displaced * s.loads[n].fill.displaces(now)
}
