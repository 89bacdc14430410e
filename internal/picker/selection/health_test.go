package selection

import (
	"math/rand/v2"
	"testing"
	"time"
)

// outcomeAt makes a call to endpoint 0 that comes and ends at one time.
func outcomeAt(state *State, at time.Duration, outcome Outcome) {
	c := state.Reserve(0, at, callFor("", 0), 0)
	state.Release(&c, outcome, at)
}

// headAt makes a call to endpoint 0 whose answer begins when the call comes, and goes on.
func headAt(state *State, at time.Duration, outcome Outcome) {
	c := state.Reserve(0, at, callFor("", 0), 0)
	state.Responded(&c, outcome, at)
}

func TestHealth(t *testing.T) {
	fail := func(state *State, at time.Duration) { outcomeAt(state, at, Failed) }
	answer := func(state *State, at time.Duration) { outcomeAt(state, at, Answered) }
	tests := map[string]struct {
		do   func(state *State)
		want map[time.Duration]bool // avoided, by time
	}{
		"well":              {do: func(*State) {}, want: map[time.Duration]bool{0: false}},
		"after one failure": {do: func(l *State) { fail(l, 0) }, want: map[time.Duration]bool{s / 2: true, s: false}},
		"a second failure doubles it": {
			do: func(l *State) { fail(l, 0); fail(l, s) }, want: map[time.Duration]bool{2 * s: true, 3*s - 1: true, 3 * s: false},
		},
		"it is capped": {
			do: func(l *State) {
				for i := range 100 {
					fail(l, time.Duration(i)*10*time.Minute)
				}
			},
			want: map[time.Duration]bool{990*time.Minute + 59*s: true, 991 * time.Minute: false},
		},
		"calls that were under way count once": {
			do: func(l *State) {
				var claims [10]Claim
				for i := range claims {
					claims[i] = l.Reserve(0, 0, callFor("", 0), 0)
				}
				for i := range claims {
					l.Release(&claims[i], Failed, s/10)
				}
			}, want: map[time.Duration]bool{s: true, 2 * s: false},
		},
		"a call that was under way and fails long after counts no more": {
			do: func(l *State) {
				c := l.Reserve(0, 0, callFor("", 0), 0)
				fail(l, s)
				l.Release(&c, Failed, 5*s)
			}, want: map[time.Duration]bool{5 * s: false},
		},
		"an answer mends it": {
			do: func(l *State) { fail(l, 0); answer(l, s/2) }, want: map[time.Duration]bool{s / 2: false},
		},
		"the beginning of an answer mends it": {
			do: func(l *State) {
				for i := range 5 {
					fail(l, time.Duration(i)*time.Minute)
				}
				headAt(l, 5*time.Minute, Ended)
			}, want: map[time.Duration]bool{5 * time.Minute: false},
		},
		"after an answer it begins anew": {
			do: func(l *State) { fail(l, 0); fail(l, 2*s); answer(l, 5*s); fail(l, 6*s) }, want: map[time.Duration]bool{7*s - 1: true, 7 * s: false},
		},
		"a call that is refused mends nothing": {
			do: func(l *State) { fail(l, 0); outcomeAt(l, s/2, Refused) }, want: map[time.Duration]bool{s - 1: true, s: false},
		},
		"a call that is refused is no failure": {
			do: func(l *State) { outcomeAt(l, 0, Refused) }, want: map[time.Duration]bool{0: false},
		},
		"one call is let through at a time": {
			do: func(l *State) { fail(l, 0); l.Reserve(0, 2*s, callFor("", 0), 0) }, want: map[time.Duration]bool{2 * s: true, 30 * s: true},
		},
		"the next one when the one let through has left": {
			do: func(l *State) { fail(l, 0); outcomeAt(l, 2*s, Abandoned) }, want: map[time.Duration]bool{2 * s: false},
		},
		"several that were let through and fail count once": {
			do: func(l *State) {
				fail(l, 0)
				var probes [8]Claim
				for i := range probes { // each a long time after the one before
					probes[i] = l.Reserve(0, time.Duration(i+1)*2*time.Minute, callFor("", 0), 0)
				}
				for i := range probes {
					l.Release(&probes[i], Failed, time.Hour)
				}
			}, want: map[time.Duration]bool{time.Hour + 2*s - 1: true, time.Hour + 2*s: false},
		},
		"one that leaves blames nobody": {
			do: func(l *State) { outcomeAt(l, 0, Abandoned) }, want: map[time.Duration]bool{0: false},
		},
		"one that another serves does": {
			do: func(l *State) {
				c := l.Reserve(0, 0, callFor("", 0), 0)
				l.Move(&c, 1, 0, 0)
			}, want: map[time.Duration]bool{0: true},
		},
		"one that another serves while the endpoint is new keeps calls away until the proxy knows it": {
			do: func(l *State) {
				l.Joined(0, 10*s)
				for range 3 {
					c := l.Reserve(0, 10*s+s/2, callFor("", 0), 0)
					l.Move(&c, 1, 0, 10*s+s/2)
				}
			}, want: map[time.Duration]bool{11 * s: true, 13 * s: false},
		},
		"one that sheds is avoided for a moment": {
			do: func(l *State) { outcomeAt(l, 0, Shed) }, want: map[time.Duration]bool{s/4 - 1: true, s / 4: false},
		},
		"one that goes on shedding is avoided longer": {
			do:   func(l *State) { outcomeAt(l, 0, Shed); outcomeAt(l, s, Shed) },
			want: map[time.Duration]bool{3*s/2 - 1: true, 3 * s / 2: false},
		},
		"one that sheds for long is avoided for seconds": {
			do: func(l *State) {
				for i := range 100 {
					outcomeAt(l, time.Duration(i)*time.Minute, Shed)
				}
			}, want: map[time.Duration]bool{99*time.Minute + 5*s - 1: true, 99*time.Minute + 5*s: false},
		},
		"a new call that is answered ends the shedding": {
			do: func(l *State) { outcomeAt(l, 0, Shed); headAt(l, s/10, Ended) }, want: map[time.Duration]bool{s / 10: false},
		},
		"the answer of a call that was there before does not": {
			do: func(l *State) {
				c := l.Reserve(0, 0, callFor("", 0), 0)
				outcomeAt(l, s/10, Shed)
				l.Release(&c, Answered, s/5)
			}, want: map[time.Duration]bool{s / 5: true},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			state := newState(2)
			tt.do(state)
			for at, want := range tt.want {
				class, _ := state.illness(0, at.Seconds())
				if got := class != ""; got != want {
					t.Errorf("avoided at %s: %v (%s), want %v", at, got, class, want)
				}
			}
		})
	}
}

// An endpoint that was skipped because it is new has no failures that would make the next avoidance longer.
func TestNewEndpointIsNotBlamed(t *testing.T) {
	state := newState(2)
	state.Joined(0, s)
	c := state.Reserve(0, s, callFor("", 0), 0)
	state.Move(&c, 1, 0, s)
	if got := state.Standing(0, s).Failures; got != 0 {
		t.Errorf("%d failures, want none", got)
	}
	outcomeAt(state, 10*s, Failed)
	if got := state.Standing(0, 10*s).AvoidedFor; got != 1 {
		t.Errorf("avoided for %v s after the first failure, want 1", got)
	}
}

// An endpoint that accepts calls and never answers gets one at a time, until it answers.
func TestSilentEndpoint(t *testing.T) {
	call := func(stream bool, tokens int) *Call {
		c := callFor("", tokens)
		c.Facts.Stream = stream
		return c
	}
	all := numbers(2)
	tests := map[string]struct {
		do   func(state *State)
		want map[time.Duration]bool // kept from further calls, by time
	}{
		"a streamed answer that does not begin": {
			do:   func(l *State) { l.Reserve(0, 0, call(true, 0), 0) },
			want: map[time.Duration]bool{5 * s: false, 5*s + s/2: true, time.Hour: true},
		},
		"a whole answer may take long": {
			do:   func(l *State) { l.Reserve(0, 0, call(false, 0), 0) },
			want: map[time.Duration]bool{30 * s: false, 31 * s: true},
		},
		"and longer where the pool's do": {
			do: func(l *State) {
				c := l.Reserve(1, 0, call(false, 0), 0)
				l.Responded(&c, Answered, 100*s)
				l.Reserve(0, 100*s, call(false, 0), 0)
			},
			want: map[time.Duration]bool{499 * s: false, 501 * s: true},
		},
		"a long prefill is no silence": {
			do:   func(l *State) { l.Reserve(0, 0, call(true, 1000), 1000) }, // ten seconds
			want: map[time.Duration]bool{40 * s: false, 41 * s: true},
		},
		"a call whose answer began is none": {
			do: func(l *State) {
				c := l.Reserve(0, 0, call(true, 0), 0)
				l.Responded(&c, Ended, s)
			},
			want: map[time.Duration]bool{time.Hour: false},
		},
		"an answer of any kind ends it": {
			do: func(l *State) {
				l.Reserve(0, 0, call(true, 0), 0)
				c := l.Reserve(0, 0, call(true, 0), 0)
				l.Age(8*s, all)
				l.Responded(&c, Shed, 8*s)
			},
			want: map[time.Duration]bool{8 * s: false, 13 * s: false, 14 * s: true},
		},
		"a refusal does not, as a front gives it before its engine is asked": {
			do: func(l *State) {
				l.Reserve(0, 0, call(true, 0), 0)
				c := l.Reserve(0, 0, call(true, 0), 0)
				l.Age(8*s, all)
				l.Responded(&c, Refused, 8*s)
			},
			want: map[time.Duration]bool{8 * s: true},
		},
		"refusals alone are no silence": {
			do: func(l *State) {
				for i := range 20 {
					c := l.Reserve(0, time.Duration(i)*s, call(true, 0), 0)
					l.Responded(&c, Refused, time.Duration(i+1)*s-1)
				}
				l.Reserve(0, 20*s, call(true, 0), 0)
			},
			want: map[time.Duration]bool{21 * s: false},
		},
		"callers that give up leave it to one call more": {
			do: func(l *State) {
				for i := range 4 {
					c := l.Reserve(0, time.Duration(2*i)*s, call(true, 0), 0)
					l.Release(&c, Abandoned, time.Duration(2*i+2)*s)
				}
			},
			want: map[time.Duration]bool{9 * s: false},
		},
		"callers that give up tell of it together": {
			do: func(l *State) {
				for i := range 4 {
					c := l.Reserve(0, time.Duration(2*i)*s, call(true, 0), 0)
					l.Release(&c, Abandoned, time.Duration(2*i+2)*s)
				}
				l.Reserve(0, 9*s, call(true, 0), 0)
			},
			want: map[time.Duration]bool{9 * s: true},
		},
		"no call, no silence": {
			do: func(l *State) {
				c := l.Reserve(0, 0, call(true, 0), 0)
				l.Release(&c, Abandoned, s)
				l.Reserve(0, time.Hour, call(true, 0), 0)
			},
			want: map[time.Duration]bool{time.Hour + 3*s: false},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for at, want := range tt.want {
				state := newState(2)
				tt.do(state)
				state.Age(at, all)
				class, _ := state.illness(0, at.Seconds())
				if got := class == ClassSilent; got != want {
					t.Errorf("silent at %s: %v, want %v", at, got, want)
				}
			}
		})
	}
}

// Whatever has happened to all endpoints, one of them is picked. One that sheds is picked before one that failed.
func TestSomeoneIsPicked(t *testing.T) {
	for name, outcome := range map[string]Outcome{"shed": Shed, "failed": Failed} {
		t.Run(name, func(t *testing.T) {
			state := newState(2)
			view := view{State: state, Candidates: numbers(2), Cached: make([]int32, 2)}
			rnd := rand.New(rand.NewPCG(1, 1))
			counts := map[int32]int{}
			for i := range 20 {
				now := time.Duration(i) * s / 100
				var out [Choices]Choice
				state.Age(now, view.Candidates)
				if n := view.Pick(view.of(callFor("", 0)), now, rnd, &out); n != 2 {
					t.Fatalf("%d endpoints picked, want 2", n)
				}
				counts[out[0].Endpoint]++
				c := state.Reserve(out[0].Endpoint, now, callFor("", 0), 0)
				state.Release(&c, outcome, now)
			}
			if counts[0] == 0 || counts[1] == 0 {
				t.Errorf("calls went to %v, want both used", counts)
			}
		})
	}
	state := newState(2)
	view := view{State: state, Candidates: numbers(2), Cached: make([]int32, 2)}
	c := state.Reserve(0, 0, callFor("", 0), 0)
	state.Release(&c, Failed, 0)
	c = state.Reserve(1, 0, callFor("", 0), 0)
	state.Release(&c, Shed, 0)
	var out [Choices]Choice
	state.Age(0, view.Candidates)
	if view.Pick(view.of(callFor("", 0)), 0, rand.New(rand.NewPCG(1, 1)), &out); out[0].Endpoint != 1 {
		t.Errorf("picked %d, which failed, before one that sheds", out[0].Endpoint)
	}
}
