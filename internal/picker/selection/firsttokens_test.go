package selection

import (
	"math"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// counting is a reading of an endpoint that has counted so many first tokens, after so many seconds in sum.
func counting(at time.Duration, running int, firstTokens int64, seconds float64) *Reading {
	return &Reading{At: at, Running: running, WaitingSplit: true,
		Counters: Counters{Prefilled: 1000 * firstTokens, FirstTokens: firstTokens, FirstTokenSeconds: seconds}}
}

// followed is a state with one endpoint whose first tokens are followed.
func followed() *State {
	s := stateWith(1, picksettings.Defaults())
	s.Observe(0, second(1), counting(second(1), 0, 1, 1))
	s.Observe(0, second(2), counting(second(2), 0, 1, 1))
	return s
}

func second(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// A server that takes many prompts into one batch shows none of them as waiting. They are work all the same, until their
// first tokens are counted.
func TestPromptsOfABatchAreWork(t *testing.T) {
	s := followed()
	for range 5 {
		add(s, second(3), 8000)
	}
	if got := s.Observe(0, second(3.5), counting(second(3.5), 5, 1, 1)); got != (FirstTokens{Taken: true}) {
		t.Errorf("a reading without new first tokens tells of %+v", got)
	}
	if got := s.Queue(0, second(3.5)); math.Abs(got-36000) > 100 { // half a second of 8,000 tokens a second is done
		t.Errorf("%.0f tokens wait, want 36,000", got)
	}
	got := s.Observe(0, second(8), counting(second(8), 5, 6, 1+25))
	if got.Calls != 5 || got.Observed != 25 || math.Abs(got.Expected-15) > 0.1 {
		t.Errorf("the reading tells of %+v, want 5 calls, after 25 s in sum, where 1 s, 2 s, … were expected", got)
	}
	if got := s.Queue(0, second(8)); got != 0 {
		t.Errorf("%.0f tokens wait after all first tokens", got)
	}
}

// The calls that came first get the first tokens, also those that ended before the reading.
func TestFirstTokensGoByArrival(t *testing.T) {
	s := followed()
	ended := add(s, second(3), 800)
	add(s, second(3.01), 4000)
	s.Release(ended, Answered, second(3.2))
	got := s.Observe(0, second(3.3), counting(second(3.3), 1, 2, 1+0.1))
	if got.Calls != 1 || math.Abs(got.Observed-0.1) > 1e-9 {
		t.Errorf("the reading tells of %+v, want the call that has ended", got)
	}
	if got := s.Queue(0, second(3.3)); got < 1000 {
		t.Errorf("%.0f tokens wait, want most of the other call's 4,000", got)
	}
}

// Where others call the server too, nobody knows whose first tokens are counted, until they have been gone for a while.
func TestFirstTokensOfOthers(t *testing.T) {
	s := followed()
	add(s, second(3), 4000)
	if got := s.Observe(0, second(3.1), counting(second(3.1), 3, 3, 2)); got != (FirstTokens{Taken: true, Counted: 2, Shared: true}) {
		t.Errorf("with calls of others a reading tells of %+v", got)
	}
	s.Observe(0, second(5), counting(second(5), 1, 4, 3))
	s.Observe(0, second(14), counting(second(14), 1, 4, 3))
	add(s, second(15), 4000)
	if got := s.Observe(0, second(16), counting(second(16), 2, 5, 3.6)); got.Calls != 1 || got.Shared {
		t.Errorf("after the others left, a reading tells of %+v, want one call", got)
	}
}

// A server counts calls at the beginning of a step: one that has left is no call of others, and one that has just come has not
// got its first token.
func TestReadingsLag(t *testing.T) {
	s := followed()
	left := add(s, second(3), 800)
	s.Release(left, Answered, second(3.2))
	s.Observe(0, second(3.21), counting(second(3.21), 1, 2, 1.15)) // still counted as running
	add(s, second(4), 4000)
	s.Observe(0, second(4.01), counting(second(4.01), 0, 2, 1.15)) // not counted yet
	if got := s.Observe(0, second(4.8), counting(second(4.8), 1, 3, 1.7)); got.Calls != 1 {
		t.Errorf("a reading tells of %+v, want one call", got)
	}
}

// A call that got its first token has prefilled its prompt, however soon it is broken off.
func TestFirstTokenShowsAPrefill(t *testing.T) {
	s := followed()
	fast := add(s, second(3), 80_000) // ten seconds at the assumed speed
	s.Observe(0, second(3.2), counting(second(3.2), 1, 2, 1.1))
	if !s.Release(fast, Ended, second(3.3)) {
		t.Error("a call with a first token is taken not to be prefilled")
	}
	slow := add(s, second(4), 80_000)
	s.Observe(0, second(4.2), counting(second(4.2), 1, 2, 1.1))
	if s.Release(slow, Abandoned, second(4.3)) {
		t.Error("a call without a first token is taken to be prefilled")
	}
}

// What is remembered of calls between readings is bounded, as readings may never come.
func TestGoneCallsAreBounded(t *testing.T) {
	s := followed()
	for i := range 10_000 {
		s.Release(add(s, second(3+float64(i)/1e5), 1), Ended, second(3+float64(i)/1e5))
	}
	if l := &s.loads[0]; len(l.gone) > mostGone || len(l.first.ended) > mostEnded {
		t.Errorf("%d and %d calls are remembered, want %d and %d at most", len(l.gone), len(l.first.ended), mostGone, mostEnded)
	}
}

// A caller who left after the first token, and before the answer's headers, takes no other call's first token.
func TestFirstTokenOfACallerWhoLeft(t *testing.T) {
	s := followed()
	left := add(s, second(3), 800)
	add(s, second(3.1), 4000)
	s.Release(left, Abandoned, second(3.3))
	s.Observe(0, second(3.4), counting(second(3.4), 1, 2, 1.1))
	if got := s.Queue(0, second(3.4)); got < 1000 {
		t.Errorf("%.0f tokens wait, want most of the other call's 4,000", got)
	}
}

// A call without prompt tokens takes one first token, however long it lives.
func TestFirstTokenOfACallWithoutPrompt(t *testing.T) {
	s := followed()
	add(s, second(3), 0)
	s.Observe(0, second(3.1), counting(second(3.1), 1, 2, 1.01))
	add(s, second(4), 800)
	if got := s.Observe(0, second(4.2), counting(second(4.2), 2, 3, 1.11)); got.Calls != 1 || got.Expected < 0.09 {
		t.Errorf("the reading tells of %+v, want the later call, which was expected to take 0.1 s", got)
	}
	if got := s.Queue(0, second(4.2)); got != 0 {
		t.Errorf("%.0f tokens wait after all first tokens", got)
	}
}

// Where more first tokens are counted than calls are known, nobody knows whose they are.
func TestMoreFirstTokensThanCalls(t *testing.T) {
	s := followed()
	waits := add(s, second(3), 80_000)
	s.Observe(0, second(3.2), counting(second(3.2), 1, 50, 2))
	if s.Release(waits, Abandoned, second(3.3)) {
		t.Error("a call in flight is taken to be prefilled by the first tokens of others")
	}
}
