package selection

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Several pickers may pick for a pool at the same time. Each hears of the others' calls a moment later. Until then the same
// endpoint looks best to all of them, and all send their calls there. So each endpoint belongs to one of the pickers, and the
// others take it for busier than it is known to be: by the work that they themselves were given in that moment, as about as much
// came to its picker, or more or less of it as that one has more or fewer calls; and by a part of a mean call, as calls often come
// at the same instant.

const (
	// unheardFor is the time after which 1/e of what a picker decided counts as not heard of by the others, in seconds.
	unheardFor = 0.05
	// sameInstant is that part of a mean call.
	sameInstant = 0.35
	// mostBusier is how many times as many calls as this picker another one can count to have.
	mostBusier = 4
)

// Sharer is a picker that picks for the pool at the same time as others.
type Sharer struct {
	// Key is its key in rendezvous hashing. All pickers must know it by the same.
	Key uint64
	// Calls is a count of its calls of late.
	Calls float64
}

// share is what this picker has of a pool for which several pick.
type share struct {
	all       []Sharer  // this one is the first; there are none where it picks alone
	stale     bool      // the pickers or the endpoints have changed since the endpoints were dealt
	given, at float64   // the prefill that its own calls brought lately, in seconds, as a sum that decays
	each      float64   // the mean number of endpoints that belong to a picker
	order     []int32   // working memory of deal: the endpoints in the order of their keys
	owners    []int     // the same: whose they are
	counts    []float64 // the same: how many a picker has
}

// Share says which pickers pick for the pool at the same time, this one first. It counts from the next call of Age on. All pickers
// must know the endpoints by the same keys.
func (s *State) Share(all []Sharer) {
	if len(all) < 2 {
		all = nil
	}
	same := slices.EqualFunc(all, s.share.all, func(a, b Sharer) bool { return a.Key == b.Key })
	s.share.stale = s.share.stale || !same
	s.share.all = append(s.share.all[:0], all...)
}

// Decided notes that this picker has sent endpoint n a call with so many tokens to prefill.
func (s *State) Decided(n int32, now time.Duration, work float64) {
	if len(s.share.all) == 0 {
		return
	}
	t := now.Seconds()
	s.share.given = s.share.left(t) + work*s.hot[n].perToken
	s.share.at = t
}

// Own reports whether endpoint n belongs to this picker.
func (s *State) Own(n int32) bool { return s.hot[n].theirs == 0 }

// left is what the others have not heard of, in seconds of prefill.
func (h *share) left(now float64) float64 {
	return h.given * math.Exp(-max(0, now-h.at)/unheardFor)
}

// unheard returns what a picker with as many calls as this one is taken to have sent, unknown to this one, in seconds of prefill.
func (s *State) unheard(now float64) float64 {
	if len(s.share.all) == 0 {
		return 0
	}
	return s.share.left(now) + s.share.each*sameInstant*s.MeanTokens()/s.meanRate
}

// deal gives each endpoint to one of the pickers, to each as many, but for one: of the pickers that have not got theirs, to that
// which rendezvous hashing gives it. So an endpoint or a picker that comes or goes moves few endpoints between others.
func (s *State) deal(members []int32) {
	h := &s.share
	h.stale = false
	if len(h.all) == 0 {
		for _, n := range members {
			s.hot[n].theirs = 0
		}
		return
	}
	h.order = append(h.order[:0], members...)
	slices.SortFunc(h.order, func(a, b int32) int { return cmp.Compare(s.keys[a], s.keys[b]) })
	h.owners, h.counts = h.owners[:0], append(h.counts[:0], make([]float64, len(h.all))...)
	h.each = float64(len(members)) / float64(len(h.all))
	most := math.Ceil(h.each)
	for _, n := range h.order {
		owner, best := 0, -1.0
		for i := range h.all {
			if x := rendezvous(h.all[i].Key, s.keys[n]); x > best && h.counts[i] < most {
				owner, best = i, x
			}
		}
		h.owners = append(h.owners, owner)
		h.counts[owner]++
	}
	for i, n := range h.order {
		s.hot[n].theirs = 0
		if owner := h.owners[i]; owner > 0 {
			s.hot[n].theirs = float32(h.busier(owner) / h.counts[owner])
		}
	}
}

// busier is how many times as many calls as this picker another one has.
func (h *share) busier(other int) float64 {
	own, theirs := h.all[0].Calls, h.all[other].Calls
	if own <= 0 {
		return 1 // this one's first call
	}
	return min(theirs/own, mostBusier)
}
