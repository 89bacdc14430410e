package selection

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Several pickers may pick for a pool at the same time. Each hears of the others' calls a moment later. Until then the same
// endpoint looks best to all of them, and all send their calls there. So each endpoint belongs to one of the pickers, and the
// others take it for busier than it is known to be: by the work that their own endpoints were given in that moment, as about as
// many calls come to each picker, and by a part of a mean call, as calls often come at the same instant.

const (
	// unheardFor is the time after which 1/e of what a picker decided counts as not heard of by the others, in seconds.
	unheardFor = 0.05
	// sameInstant is that part of a mean call.
	sameInstant = 0.2
)

// share is what this picker has of a pool for which several pick.
type share struct {
	number, of int
	dealt      bool    // some endpoint belongs to another picker
	given, at  float64 // the prefill that its own calls brought lately, in seconds, as a sum that decays
}

// Share says how many pickers pick for the pool at the same time, and which of them this one is, from 0 on. It counts from the
// next call of Age on. Each picker must know the same number of pickers, and the same endpoints by the same keys.
func (s *State) Share(number, of int) { s.share.number, s.share.of = number, of }

// Decided notes that this picker has sent endpoint n a call with so many uncached prompt tokens.
func (s *State) Decided(n int32, now time.Duration, uncached int) {
	if s.share.of < 2 {
		return
	}
	t := now.Seconds()
	s.share.given = s.share.left(t) + float64(uncached)*s.hot[n].perToken
	s.share.at = t
}

// left is what the others have not heard of, in seconds of prefill.
func (h *share) left(now float64) float64 {
	return h.given * math.Exp(-max(0, now-h.at)/unheardFor)
}

// unheard returns what each endpoint of another picker is taken to have been given, unknown to this one, in seconds of prefill.
func (s *State) unheard(now float64, candidates int) float64 {
	if s.share.of < 2 {
		return 0
	}
	return s.share.left(now)*float64(s.share.of)/float64(candidates) + sameInstant*s.meanTokens()/s.meanRate
}

// deal gives each endpoint to one of the pickers, to each as many.
func (s *State) deal(members []int32) {
	if s.share.of < 2 && !s.share.dealt {
		return
	}
	s.share.dealt = s.share.of > 1
	s.scratch.order = append(s.scratch.order[:0], members...)
	order := s.scratch.order
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(s.keys[a], s.keys[b]) })
	for i, n := range order {
		s.hot[n].theirs = 0
		if s.share.dealt && i%s.share.of != s.share.number {
			s.hot[n].theirs = 1
		}
	}
}
