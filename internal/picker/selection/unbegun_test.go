package selection

import (
	"math"
	"testing"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// counted is a reading of an endpoint that others call too.
func counted(at float64, running, waiting int, firstTokens, ended int64) *Reading {
	return &Reading{At: second(at), Running: running, Waiting: waiting, WaitingSplit: true,
		Counters: Counters{Prefilled: 4000 * firstTokens, FirstTokens: firstTokens, FirstTokenSeconds: float64(firstTokens), Ended: ended}}
}

func TestUnbegun(t *testing.T) {
	for name, test := range map[string]struct {
		readings []*Reading
		want     int // calls without a first token, by the last reading; -1: not known
	}{
		"none at first":                     {[]*Reading{counted(1, 0, 0, 10, 10)}, 0},
		"one is prefilled":                  {[]*Reading{counted(1, 0, 0, 10, 10), counted(2, 1, 0, 10, 10)}, 1},
		"one is prefilled, others decode":   {[]*Reading{counted(1, 3, 0, 10, 7), counted(2, 4, 0, 10, 7), counted(3, 4, 0, 11, 7), counted(4, 5, 0, 11, 7)}, 1},
		"all have their first token":        {[]*Reading{counted(1, 3, 0, 10, 7), counted(2, 4, 0, 11, 7), counted(3, 1, 0, 11, 10)}, 0},
		"those that wait too":               {[]*Reading{counted(1, 0, 0, 10, 10), counted(2, 2, 3, 10, 10)}, 5},
		"it began while one was prefilled":  {[]*Reading{counted(1, 1, 0, 10, 10), counted(2, 0, 0, 11, 11), counted(3, 1, 0, 11, 11)}, 1},
		"a caller left after a first token": {[]*Reading{counted(1, 0, 0, 10, 10), counted(2, 0, 0, 11, 10), counted(3, 1, 0, 11, 10)}, 1},
		"the server restarted":              {[]*Reading{counted(1, 0, 0, 1000, 100), counted(2, 1, 0, 5, 5)}, 0},
		"a call is preempted and resumes":   {[]*Reading{counted(1, 2, 0, 14, 12), counted(2, 1, 1, 14, 12), counted(3, 2, 0, 14, 12)}, 0},
		"one always waits":                  {[]*Reading{counted(1, 2, 1, 14, 12), counted(2, 2, 1, 15, 13), counted(3, 2, 2, 15, 13)}, 2},
		"an hour without readings":          {[]*Reading{counted(1, 0, 0, 10, 2), counted(3600, 0, 0, 100, 100)}, 0},
		"no ends are counted":               {[]*Reading{counted(1, 2, 2, 10, 0)}, -1},
		"no first tokens are counted":       {[]*Reading{counted(1, 2, 2, 0, 10)}, -1},
		"never more than there are":         {[]*Reading{counted(1, 0, 0, 10, 10), counted(2, 2, 0, 10, 1<<40)}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var u unbegun
			got, ok := 0, false
			for _, r := range test.readings {
				got, ok = u.see(r.At.Seconds(), r)
			}
			if !ok {
				got = -1
			}
			if got != test.want {
				t.Errorf("%d calls have no first token, want %d", got, test.want)
			}
		})
	}
}

// A server counts what callers who left make it miss for ever. What it missed counts for half a minute at most.
func TestUnbegunForgets(t *testing.T) {
	var u unbegun
	u.see(1, counted(1, 0, 0, 10, 10))
	u.see(2, counted(2, 0, 0, 10, 4)) // a page whose numbers do not belong together
	for at := 3.0; at < 35; at++ {
		u.see(at, counted(at, 0, 0, 10, 10))
	}
	if got, _ := u.see(36, counted(36, 3, 0, 10, 10)); got != 3 {
		t.Errorf("%d calls have no first token, want 3", got)
	}
	u.see(37, counted(37, 20, 0, 10, 10))
	if got, _ := u.see(38, counted(38, 20, 0, 10, 10)); got != 20 {
		t.Errorf("%d calls have no first token, want 20", got)
	}
}

// shared is a state with one endpoint that others call: 4 calls in 10 s, of 4,000 tokens each.
func shared() *State {
	s := stateWith(1, picksettings.Defaults())
	for i := range int64(5) {
		at := float64(1 + 2*i)
		s.Observe(0, second(at), counted(at, 2, 0, 10+i, 8+i))
	}
	return s
}

// The calls of others are work from their arrival to their first token, though the server shows none as waiting.
func TestCallsOfOthersAreWork(t *testing.T) {
	s := shared()
	if got := s.Queue(0, second(9)); got != 0 {
		t.Fatalf("%.0f tokens wait where all calls have their first token", got)
	}
	s.Observe(0, second(10), counted(10, 5, 0, 14, 12)) // three more, none of which has its first token
	if got := s.Queue(0, second(10)); math.Abs(got-10000) > 1 {
		t.Errorf("%.0f tokens wait, want two and a half times 4,000", got)
	}
	if got := s.Queue(0, second(10.5)); math.Abs(got-6000) > 1000 {
		t.Errorf("%.0f tokens wait half a second later, want some 6,000", got)
	}
	s.Observe(0, second(11), counted(11, 5, 0, 17, 12))
	if got := s.Queue(0, second(11)); got != 0 {
		t.Errorf("%.0f tokens wait after all first tokens", got)
	}
}

// The picker's own calls count with what they bring, those of others with their mean.
func TestOwnCallsAmongThoseOfOthers(t *testing.T) {
	s := shared()
	add(s, second(10), 20000)
	s.Observe(0, second(10.1), counted(10.1, 4, 0, 14, 12)) // it and another one
	if got := s.Queue(0, second(10.1)); got < 15000 || got > 22000 {
		t.Errorf("%.0f tokens wait, want the most of 20,000 and some of 4,000", got)
	}
	s.Observe(0, second(12.9), counted(12.9, 4, 0, 15, 12)) // either has its first token; own is done by the queue
	if got := s.Queue(0, second(12.9)); math.Abs(got-2000) > 100 {
		t.Errorf("%.0f tokens wait, want the half of another's 4,000", got)
	}
}

// While others may call an endpoint, no call's first token is told from theirs.
func TestOthersAreRememberedForAWhile(t *testing.T) {
	s := followed()
	s.Observe(0, second(3), counting(second(3), 2, 1, 1))
	s.Observe(0, second(4), counting(second(4), 0, 3, 2))
	add(s, second(5), 8000)
	if got := s.Observe(0, second(7), counting(second(7), 1, 4, 3)); got.Calls != 0 || !got.Shared || math.Abs(got.Counted-2.0/3) > 1e-9 {
		t.Errorf("3 s after a call of others, a reading tells of %+v, want one first token of an unknown call in 3 s", got)
	}
}

func TestTokensOfOthers(t *testing.T) {
	for name, test := range map[string]struct {
		own, counted work
		want         float64
	}{
		"nothing counted":              {work{calls: 4, tokens: 400}, work{}, 100},
		"no calls of ours":             {work{}, work{calls: 4, tokens: 8000}, 2000},
		"both":                         {work{calls: 4, tokens: 400}, work{calls: 8, tokens: 8400}, 2000},
		"hardly any of others":         {work{calls: 99, tokens: 9900}, work{calls: 100, tokens: 20000}, 200},
		"ours brought more than there": {work{calls: 4, tokens: 9000}, work{calls: 8, tokens: 8000}, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			c := callsOfOthers{counted: test.counted, own: test.own}
			if got := c.tokens(100); math.Abs(got-test.want) > 1e-6 {
				t.Errorf("a call of others brings %g tokens, want %g", got, test.want)
			}
		})
	}
}

// A page that lies changes nothing for other endpoints, and little for long for its own.
func TestLyingCounters(t *testing.T) {
	s := stateWith(2, picksettings.Defaults())
	for i := range int64(5) {
		at := float64(1 + 2*i)
		s.Observe(0, second(at), counted(at, 2, 0, 10+i, 8+i))
	}
	s.Observe(1, second(1), counted(1, 0, 0, 10, 10))
	lie := counted(9.5, 0, 0, 11, 11)
	lie.Prefilled, lie.Prompts, lie.KVTokens = 1<<53, 1<<53, 100_000
	s.Observe(1, second(9.5), lie)
	s.Observe(0, second(10), counted(10, 5, 0, 14, 12))
	if got := s.Queue(0, second(10)); math.Abs(got-10000) > 1 {
		t.Errorf("%.0f tokens wait at an honest endpoint, want 10,000", got)
	}
	if got := s.TokenRatio(0); got != 1 {
		t.Errorf("the ratio of an honest endpoint is %g", got)
	}
	s.Observe(1, second(10), counted(10, 3, 0, 11, 11))
	if got := s.Queue(1, second(10)); got > 300_000 {
		t.Errorf("%.0f tokens wait at the endpoint that lied, want no more than three calls that fill its cache", got)
	}
}

// Where a server counts first tokens and not what it computed for them, calls of others bring what the pool's own do.
func TestUncountedTokensOfOthers(t *testing.T) {
	s := stateWith(1, picksettings.Defaults())
	for i := range int64(5) {
		at := float64(1 + 2*i)
		c := add(s, second(at-0.9), 4000)
		r := counted(at, 2, 0, 10+i, 8+i)
		r.Prefilled = 0
		s.Observe(0, second(at), r)
		s.Release(c, Answered, second(at))
	}
	r := counted(10, 2, 10, 14, 12)
	r.Prefilled = 0
	s.Observe(0, second(10), r)
	if got := s.Queue(0, second(10)); got < 30_000 || got > 48_000 {
		t.Errorf("%.0f tokens wait with ten calls of others, want some 40,000", got)
	}
}

// A page is as of the end of a step: calls that came in the meantime are not on it, and stay in the queue.
func TestOwnCallsThatThePageDoesNotShow(t *testing.T) {
	s := shared()
	for range 3 {
		add(s, second(10), 20000)
	}
	s.Observe(0, second(10.05), counted(10.05, 2, 0, 14, 12))
	if got := s.Queue(0, second(10.05)); got < 15_000 {
		t.Errorf("%.0f tokens wait, want at least those of a call that may be in its prefill", got)
	}
}
