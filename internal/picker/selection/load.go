package selection

import "slices"

// hot is what a pick reads of every candidate: one cache line each.
type hot struct {
	// empty is the moment at which the queue will have drained, in seconds of the clock.
	empty float64
	// perToken is the time to prefill a token, in seconds.
	perToken float64
	// calls are those in flight, the picker's own and those that readings tell of.
	calls float64
	// room is how long it takes to prefill as many tokens as there is free KV memory for; +Inf if unknown.
	room float64
	// displaces is what a token to prefill costs by what it pushes out of the cache, as a multiple of its time.
	displaces float64
	// own are the picker's own calls in flight.
	own int32
	// lastPick is the number of the pick that last chose the endpoint; 0 where none did.
	lastPick uint64
}

// load is the rest of what is known of an endpoint's work. Positions count the uncached prompt tokens that the picker
// has sent there since it knows the endpoint.
type load struct {
	arrived float64 // the position of the queue's end
	places  []place // calls in flight in the order of their arrival
	speed   speed
	fill    fill
	told    told
}

// place is one call's place in an endpoint's queue.
type place struct {
	at         float64 // when it came, in seconds of the clock
	due        float64 // when its first token was expected as it came
	start, end float64 // positions
	alone      bool    // nothing was ahead of it
}

// tokens is the number of uncached prompt tokens that the call brought.
func (t place) tokens() float64 { return t.end - t.start }

// queue is the number of uncached prompt tokens that wait to be prefilled.
func (h *hot) queue(now float64) float64 { return max(0, h.empty-now) / h.perToken }

// setQueue says that at the given moment so many tokens wait.
func (h *hot) setQueue(now, tokens float64) { h.empty = now + max(0, tokens)*h.perToken }

// add puts a call with so many uncached tokens at the end of endpoint n's queue.
func (s *State) add(n int32, now, tokens float64) place {
	h, l := &s.hot[n], &s.loads[n]
	ahead := h.queue(now)
	h.setQueue(now, ahead+tokens)
	t := place{at: now, due: h.empty, start: l.arrived, end: l.arrived + tokens, alone: ahead == 0}
	l.arrived = t.end
	l.fill.add(now, tokens)
	s.setDisplaces(n, now)
	l.places = append(l.places, t)
	h.own++
	h.calls++
	return t
}

// drained is the position up to which endpoint n is taken to have prefilled.
func (s *State) drained(n int32, now float64) float64 {
	return s.loads[n].arrived - s.hot[n].queue(now)
}

// remove takes a call out of endpoint n, whose tokens up to the given position are prefilled.
func (s *State) remove(n int32, now float64, t place, drained float64) {
	h, l := &s.hot[n], &s.loads[n]
	h.setQueue(now, l.arrived-drained)
	i, found := slices.BinarySearchFunc(l.places, t, comparePlaces)
	for found && i < len(l.places) && l.places[i] != t { // those without tokens share a position
		i++
	}
	if !found || i == len(l.places) {
		return
	}
	l.places = slices.Delete(l.places, i, i+1)
	h.own--
	h.calls = max(h.calls-1, float64(h.own))
}

func comparePlaces(a, b place) int {
	switch {
	case a.start < b.start, a.start == b.start && a.end < b.end:
		return -1
	case a.start == b.start && a.end == b.end:
		return 0
	}
	return 1
}

// answered takes away a call that was answered to its end. Servers prefill in the order of arrival, so all that came
// before it is prefilled too: an endpoint faster than it was taken for is seen as empty again.
func (s *State) answered(n int32, now float64, t place) {
	s.remove(n, now, t, max(s.drained(n, now), t.end))
}

// withdraw takes away a call that the endpoint did not answer, with those of its tokens that still wait. It reports
// whether the call's prompt had been prefilled by then, as far as the fluid tells.
func (s *State) withdraw(n int32, now float64, t place) (prefilled bool) {
	drained := s.drained(n, now)
	s.remove(n, now, t, drained+max(0, t.end-max(drained, t.start)))
	return drained >= t.end
}

// How many times faster than it is taken to be an endpoint may be, where a call's end has to tell whether its prompt was
// prefilled: one whose speed was observed for as long as it takes to be sure of it, and one whose speed is assumed. A
// prompt that is wrongly taken not to be cached is prefilled anew elsewhere, which costs more than the other mistake.
const doubtObserved, doubtAssumed = 4, 32

// likelyPrefilled says whether a call whose answer began has been there for so long that its prompt is prefilled. Readings
// tell when its turn has come; where there are none, the whole wait is as uncertain as the speed.
func (s *State) likelyPrefilled(n int32, now float64, t place) bool {
	l, doubt := &s.loads[n], doubtAssumed
	if l.speed.seconds >= priorSeconds {
		doubt = doubtObserved
	}
	longest := (now - t.at) * float64(doubt)
	if weight(now-l.told.at) > 0 {
		return s.drained(n, now) >= t.start && longest >= t.tokens()*s.hot[n].perToken
	}
	return longest >= t.due-t.at
}
