package selection

import "slices"

// hot is what a pick reads of every candidate, in one cache line.
type hot struct {
	// empty is the time at which the queue will have drained, in seconds of the clock.
	empty float64
	// perToken is the time to prefill a token, in seconds, and rate its inverse.
	perToken, rate float64
	// calls are the calls in flight: the picker's own, and those from elsewhere that readings report.
	calls float64
	// room is the KV cache head-room, as the time to prefill the tokens that fit into it, in seconds; +Inf if unknown.
	room float64
	// displaces is the cost of what a prefilled token evicts from the cache, as a multiple of the time to prefill it.
	displaces float64
	// own are the picker's own calls in flight.
	own int32
	// theirs is 0 for this picker's own endpoint, else what part of another one's calls goes there, as a multiple of the own calls.
	theirs float32
	// lastPick is the number of the pick that last chose the endpoint; 0 where none did.
	lastPick uint64
}

// load is the rest of an endpoint's work. A position in its queue is a sum: the work that the picker has sent to the
// endpoint so far, in tokens to prefill, as curve has them.
type load struct {
	arrived float64 // the position of the queue's end
	places  []place // calls in flight in the order of their arrival
	speed   speed
	fill    fill
	reading lastReading
	first   firstTokens
	unbegun unbegun
	others  callsOfOthers
	ratio   tokenRatio
	gone    []float64 // when calls left, of late
	// deferred are the calls in flight that the last reading showed as deferred.
	deferred []place
}

// place is one call's place in an endpoint's queue.
type place struct {
	at         float64 // when the call arrived, in seconds of the clock
	due        float64 // when its first token was expected on its arrival
	start, end float64 // positions
	prompt     float64 // tokens
	lead       float64 // the part of its work that is not of its tokens
	uncached   float64 // prompt tokens
	alone      bool    // nothing was ahead of it
	running    float64 // the calls that the endpoint answered when it came, where it was alone
	adapter    int32   // the id of what may be its adapter; none where it needs none
	loads      bool    // its adapter was not known to be loaded when it came
}

// tokens is the work that the call brought, in tokens to prefill.
func (t place) tokens() float64 { return t.end - t.start }

// queue is the work that waits, in tokens to prefill.
func (h *hot) queue(now float64) float64 { return max(0, h.empty-now) / h.perToken }

// setQueue sets how many tokens wait at the given time.
func (h *hot) setQueue(now, tokens float64) { h.empty = now + max(0, tokens)*h.perToken }

// add puts a call with so many tokens, some of them uncached, and perhaps an adapter, at the end of endpoint n's queue.
func (s *State) add(n int32, now, prompt, uncached float64, adapter int32) place {
	h, l := &s.hot[n], &s.loads[n]
	ahead := h.queue(now)
	t := place{at: now, start: l.arrived, prompt: prompt, uncached: uncached, adapter: adapter, loads: !s.adapters.loaded(n, adapter)}
	work := max(s.curve.work(prompt, uncached), 1) // so that each call has a position of its own
	if t.alone = ahead == 0; t.alone {
		t.running = h.calls
		t.lead = s.curve.perCall + s.curve.perRunning*t.running
		work += t.lead
	}
	h.setQueue(now, ahead+work)
	t.due, t.end = h.empty, t.start+work
	if !t.alone {
		t.due += s.curve.perCall * h.perToken
	}
	l.arrived = t.end
	l.fill.add(now, uncached)
	l.others.own.add(now, 1, uncached)
	s.setDisplaces(n, now)
	l.places = append(l.places, t)
	h.own++
	h.calls++
	return t
}

// drained returns the position up to which endpoint n is taken to have prefilled.
func (s *State) drained(n int32, now float64) float64 {
	return s.loads[n].arrived - s.hot[n].queue(now)
}

// remove takes a call out of endpoint n, which has prefilled the tokens up to the position drained.
func (s *State) remove(n int32, now float64, t place, drained float64) {
	h, l := &s.hot[n], &s.loads[n]
	h.setQueue(now, l.arrived-drained)
	i, found := slices.BinarySearchFunc(l.places, t, comparePlaces)
	for found && i < len(l.places) && l.places[i] != t { // calls without tokens share a position
		i++
	}
	if !found || i == len(l.places) {
		return
	}
	l.places = slices.Delete(l.places, i, i+1)
	l.depart(now)
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

// answered removes a call that was answered to its end. Servers prefill in the order of arrival, so all calls before it
// are prefilled too. This shows the queue of an endpoint that is faster than it was taken for as empty.
func (s *State) answered(n int32, now float64, t place) {
	s.remove(n, now, t, max(s.drained(n, now), t.end))
}

// withdraw removes a call that is not known to be prefilled, with those of its tokens that still wait. It reports
// whether the call's prompt had been prefilled by then, by the fluid model of the queue.
func (s *State) withdraw(n int32, now float64, t place) (prefilled bool) {
	drained := s.drained(n, now)
	s.remove(n, now, t, drained+max(0, t.end-max(drained, t.start)))
	return (s.loads[n].first.has(t) || drained >= t.end) && !s.isDeferred(n, now, t)
}

// isDeferred reports whether a call was deferred at endpoint n's last reading, and that reading is fresh.
func (s *State) isDeferred(n int32, now float64, t place) bool {
	l := &s.loads[n]
	return weight(now-l.reading.at) > 0 && slices.Contains(l.deferred, t)
}

// doubtObserved and doubtAssumed are how many times faster than assumed an endpoint may be, when a call's duration
// tells whether its prompt was prefilled: where its speed was observed for priorSeconds, and where not. To take a
// cached prompt for uncached is the worse mistake: it is prefilled again elsewhere.
const doubtObserved, doubtAssumed = 4, 32

// likelyPrefilled says whether a call whose answer began was there for so long that its prompt is prefilled. With a
// fresh reading the time of the call's turn is known. Without one, the whole wait is as uncertain as the speed.
func (s *State) likelyPrefilled(n int32, now float64, t place) bool {
	if s.isDeferred(n, now, t) {
		return false
	}
	if s.loads[n].first.has(t) {
		return true
	}
	l, doubt := &s.loads[n], doubtAssumed
	if l.speed.seconds >= priorSeconds {
		doubt = doubtObserved
	}
	longest := (now - t.at) * float64(doubt)
	if weight(now-l.reading.at) > 0 {
		return s.drained(n, now) >= t.start && longest >= t.tokens()*s.hot[n].perToken
	}
	return longest >= t.due-t.at
}
