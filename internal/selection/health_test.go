package selection

import (
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	fail := func(state *State, at time.Duration) {
		c := state.Reserve(0, at, callFor("", 0), 0)
		state.Release(&c, Failed, at)
	}
	answer := func(state *State, at time.Duration) {
		c := state.Reserve(0, at, callFor("", 0), 0)
		state.Release(&c, Answered, at)
	}
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
		"an answer mends it": {
			do: func(l *State) { fail(l, 0); answer(l, s/2) }, want: map[time.Duration]bool{s / 2: false},
		},
		"after an answer it begins anew": {
			do: func(l *State) { fail(l, 0); fail(l, 2*s); answer(l, 5*s); fail(l, 6*s) }, want: map[time.Duration]bool{7*s - 1: true, 7 * s: false},
		},
		"one call is let through at a time": {
			do: func(l *State) { fail(l, 0); l.Reserve(0, 2*s, callFor("", 0), 0) }, want: map[time.Duration]bool{2 * s: true, 2*s + s/2: true, 3 * s: false},
		},
		"one that leaves blames nobody": {
			do: func(l *State) {
				c := l.Reserve(0, 0, callFor("", 0), 0)
				l.Release(&c, Abandoned, 0)
			}, want: map[time.Duration]bool{0: false},
		},
		"one that another serves does": {
			do: func(l *State) {
				c := l.Reserve(0, 0, callFor("", 0), 0)
				l.Move(&c, 1, 0)
			}, want: map[time.Duration]bool{0: true},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			state := newState(2)
			tt.do(state)
			for at, want := range tt.want {
				if got := state.avoided(0, at.Seconds()); got != want {
					t.Errorf("avoided at %s: %v, want %v", at, got, want)
				}
			}
		})
	}
}
