package selection

import (
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// State is what a pool knows of its endpoints, each under its number. The methods below, Observe and Age change it;
// Pick and Explain only read it. It has no lock: its user must serialise all calls.
type State struct {
	settings picksettings.Settings
	hot      []hot
	loads    []load
	health   []health
	adapters adapters
	keys     []uint64 // each endpoint's key in rendezvous hashing

	picks       uint64
	unwell      int      // how many endpoints are not well
	heads       [2]heads // by kind of answer
	aged        float64  // when Age last adjusted the state
	meanForeign float64
	meanRate    float64 // prefill speed of an endpoint, in tokens a second
	observed    []observedSpeed
	work        work
	fit         curveFit
	curve       curve
	density     float64 // what a mean uncached token takes, in tokens without anything before them
	share       share
	waiting     float64 // work that waits at the picker, in tokens to prefill
	supposed    []supposed
	scratch     scratch
}

// NewState makes the state of a pool without endpoints.
func NewState(settings picksettings.Settings) *State {
	return &State{settings: settings, adapters: newAdapters(), aged: math.Inf(-1), meanRate: settings.PrefillRate, density: 1}
}

// Configure replaces the settings. Learned speeds stay; a new assumed speed counts from the next call of Age on.
func (s *State) Configure(settings picksettings.Settings) {
	s.settings = settings
	s.aged = math.Inf(-1)
}

// Len is the number of endpoint numbers.
func (s *State) Len() int { return len(s.hot) }

// Reset makes n the number of an endpoint of which nothing is known, and adds n if it is beyond Len. key is the
// endpoint's key in rendezvous hashing and must be the same in every replica of the picker.
func (s *State) Reset(n int32, key uint64) {
	for int(n) >= len(s.hot) {
		s.hot = append(s.hot, hot{})
		s.loads = append(s.loads, load{})
		s.health = append(s.health, health{})
		s.keys = append(s.keys, 0)
		s.adapters.grow()
	}
	s.change(n, func(h *health) { *h = health{joined: math.Inf(-1)} })
	s.adapters.forget(n)
	s.hot[n] = hot{perToken: 1 / s.meanRate, rate: s.meanRate, room: math.Inf(1)}
	s.loads[n] = load{places: s.loads[n].places[:0], reading: noReading()}
	s.keys[n] = key
	s.share.stale = true
}

// Restarted notes that endpoint n restarted and lost what it had in memory. Its speed stays, and so do the picker's own
// calls in flight, which end by themselves.
func (s *State) Restarted(n int32) {
	s.adapters.forget(n)
	s.loads[n].fill = fill{}
	s.hot[n].displaces = 0
	s.loads[n].reading, s.loads[n].first, s.loads[n].unbegun = noReading(), firstTokens{}, unbegun{}
}

// InFlight is the number of the picker's own calls in flight at endpoint n.
func (s *State) InFlight(n int32) int { return int(s.hot[n].own) }

// Queue is the number of uncached prompt tokens that wait at endpoint n, if they are like the mean.
func (s *State) Queue(n int32, now time.Duration) float64 {
	return s.hot[n].queue(now.Seconds()) / s.density
}

// Rate is the prefill speed that endpoint n is taken to have, in tokens a second that have nothing before them.
func (s *State) Rate(n int32) float64 { return 1 / s.hot[n].perToken }

// Claim is what one call holds at an endpoint.
type Claim struct {
	Endpoint int32
	place    place
	adapter  use
	kind     int  // the kind of answer that the call wants
	waits    bool // the call's answer has not begun
	probe    bool // the call is the first one since the endpoint was avoided
	moved    bool // the call was first picked for another endpoint
}

// Reserve reserves endpoint n for a call that brings so many uncached prompt tokens.
func (s *State) Reserve(n int32, now time.Duration, c *Call, uncached int) Claim {
	t := now.Seconds()
	s.picks++
	s.hot[n].lastPick = s.picks
	prompt := float64(c.Facts.PromptTokens())
	s.work.add(t, 1, s.curve.work(prompt, float64(uncached)))
	id := s.adapters.wanted(c.Facts.Model, t)
	place := s.add(n, t, prompt, float64(uncached), id)
	kind := whole
	if c.Facts.Stream {
		kind = streamed
	}
	s.health[n].silence[kind].wait(t, place.due-t)
	return Claim{
		Endpoint: n,
		place:    place,
		adapter:  s.adapters.hold(n, id, s.arrival(n, t)),
		kind:     kind,
		waits:    true,
		probe:    s.probe(n, t),
	}
}

// arrival returns the arrival of the call that was added to endpoint n's queue last.
func (s *State) arrival(n int32, now float64) arrival {
	return arrival{at: now, prefilled: s.hot[n].empty + step, load: s.settings.AdapterLoad.Seconds()}
}

// Move moves a claim to the endpoint that really serves the call, and for which the call brings so many uncached prompt
// tokens. The first endpoint has not prefilled the prompt, and is taken to have failed, unless it is new.
func (s *State) Move(c *Claim, to int32, uncached int, now time.Duration) {
	t := now.Seconds()
	s.withdraw(c.Endpoint, t, c.place)
	s.stopWaiting(c, t)
	s.skipped(c.Endpoint, t, c)
	id := s.adapters.release(c.Endpoint, c.adapter, t, false)
	c.Endpoint, c.probe, c.moved = to, false, true
	c.place = s.add(to, t, c.place.prompt, float64(uncached), id)
	c.adapter = s.adapters.hold(to, id, s.arrival(to, t))
}

// Outcome is how a call ended at an endpoint, or is expected to end by the headers of its answer.
type Outcome uint8

const (
	// Abandoned says that the caller left before an answer was seen, and nobody is to blame. The prompt may have been
	// prefilled by then, unless the endpoint may hang.
	Abandoned Outcome = iota
	// Ended says that a good answer began and that its end was not seen. A streamed answer begins before its prompt is
	// prefilled, and a caller who leaves then looks like an answer's end.
	Ended
	// Answered says that the endpoint answered to the end, and so has prefilled the prompt.
	Answered
	// Refused says that the endpoint is well and refused the call (4xx): it has prefilled nothing.
	Refused
	// Shed says that the endpoint refused the call because it is overloaded (429, 503).
	Shed
	// Failed says that the endpoint gave no answer, or a server error: it is not known to have prefilled anything.
	Failed
)

// Responded notes what the headers of a call's answer show of the endpoint's health. Only the first call of it counts.
func (s *State) Responded(c *Claim, outcome Outcome, now time.Duration) {
	if outcome == Abandoned || !c.waits && !c.moved {
		return
	}
	n, t := c.Endpoint, now.Seconds()
	if (outcome == Ended || outcome == Answered) && c.waits && !s.health[n].silent { // the late answers of a silent endpoint are not usual
		s.heads[c.kind].add(t, t-c.place.at)
	}
	if outcome == Refused { // a server's front end refuses calls even where its engine hangs, so a refusal ends no silence
		before := s.health[n].silence[c.kind].waited
		s.stopWaiting(c, t)
		s.health[n].silence[c.kind].waited = before
	} else {
		s.stopWaiting(c, t)
		s.answerBegan(n, t)
	}
	c.moved = false
	switch outcome {
	case Ended, Answered:
		s.recover(n, c.place.at)
	case Shed:
		s.shed(n, t, c.place.at)
	case Failed:
		s.failed(n, t, c.place.at, c.probe)
	}
	if c.probe && outcome != Failed {
		s.unprobe(n, t)
	}
	c.probe = false
}

// stopWaiting notes that a call no longer waits for its answer to begin.
func (s *State) stopWaiting(c *Claim, now float64) {
	if c.waits {
		s.health[c.Endpoint].silence[c.kind].end(now)
		c.waits = false
	}
}

// Computed returns how many of a call's uncached tokens its endpoint has had the time to prefill since the call's turn
// came, at the speed that the endpoint is taken to have. Of a deferred call it has prefilled nothing.
func (s *State) Computed(c *Claim, now time.Duration) int {
	if s.isDeferred(c.Endpoint, now.Seconds(), c.place) {
		return 0
	}
	t := &c.place
	return int(math.Round(s.curve.computed(t.prompt, t.uncached, s.drained(c.Endpoint, now.Seconds())-t.start-t.lead)))
}

// Release ends a claim. It reports whether the endpoint is taken to have prefilled the prompt.
func (s *State) Release(c *Claim, outcome Outcome, now time.Duration) (prefilled bool) {
	n, t := c.Endpoint, now.Seconds()
	mayHang := s.mayHang(c, t)
	s.Responded(c, outcome, now)
	s.stopWaiting(c, t)
	if c.probe {
		s.unprobe(n, t)
	}
	if outcome == Answered || outcome == Ended || outcome == Abandoned && s.drained(n, t) >= c.place.end {
		s.loads[n].first.note(t, c.place) // it has its first token, if perhaps no reading has counted it
	}
	switch outcome {
	case Answered:
		s.answered(n, t, c.place)
		prefilled = true
	case Ended:
		likely := s.likelyPrefilled(n, t, c.place)
		prefilled = s.withdraw(n, t, c.place) || likely
	case Abandoned:
		prefilled = s.withdraw(n, t, c.place) && !mayHang
	default:
		s.withdraw(n, t, c.place)
	}
	s.adapters.release(n, c.adapter, t, prefilled && outcome != Abandoned)
	return prefilled
}

// work is what the pool's calls brought lately.
type work struct {
	tokens, calls float64 // sums that decay, of tokens to prefill and of calls
	at            float64 // when the sums were last decayed
}

// workMemory is the time, in seconds, after which a call weighs 1/e in the average of the pool's work.
const workMemory = 30

func (w *work) add(now, calls, tokens float64) {
	w.decay(now)
	w.tokens += tokens
	w.calls += calls
}

func (w *work) decay(now float64) {
	keep := math.Exp(-max(0, now-w.at) / workMemory)
	w.tokens *= keep
	w.calls *= keep
	w.at = max(now, w.at)
}

// Work returns how many tokens to prefill a prompt of so many tokens is of which nothing is cached: a token counts for more, the more
// are before it.
func (s *State) Work(tokens int) float64 { return s.curve.work(float64(tokens), float64(tokens)) }

// MeanTokens returns how many tokens to prefill a call brings on average.
func (s *State) MeanTokens() float64 {
	if s.work.calls < 1e-9 {
		return 0
	}
	return s.work.tokens / s.work.calls
}
