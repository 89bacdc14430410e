package selection

import (
	"math"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

const s = time.Second

// newState makes a state of n endpoints that prefill 100 tokens a second, so that queues are easily counted.
func newState(n int) *State {
	settings := picksettings.Defaults()
	settings.PrefillRate = 100
	return stateWith(n, settings)
}

func stateWith(n int, settings picksettings.Settings) *State {
	state := NewState(settings)
	for i := range n {
		state.Reset(int32(i), uint64(i)*0x9e3779b97f4a7c15+1)
	}
	return state
}

// numbers are 0 to n-1.
func numbers(n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(i)
	}
	return out
}

func callFor(model string, tokens int) *Call {
	f := factsOf(tokens)
	f.Model = model
	return &Call{Facts: f}
}

// add reserves a call of so many uncached tokens at endpoint 0.
func add(state *State, at time.Duration, tokens int) *Claim {
	c := state.Reserve(0, at, callFor("", tokens), tokens)
	return &c
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-6*max(1, math.Abs(b)) }

func TestLoad(t *testing.T) {
	tests := map[string]struct {
		do           func(state *State)
		at           time.Duration
		wantQueue    float64
		wantOther    float64 // at the other endpoint
		wantRequests int
	}{
		"empty": {do: func(*State) {}, at: s},
		"a call waits": {
			do: func(l *State) { add(l, 0, 500) }, wantQueue: 500, wantRequests: 1,
		},
		"the queue drains at the rate": {
			do: func(l *State) { add(l, 0, 500) }, at: s, wantQueue: 400, wantRequests: 1,
		},
		"an empty queue does not go on draining": {
			do: func(l *State) { add(l, 0, 50); add(l, 10*s, 300) }, at: 11 * s, wantQueue: 200, wantRequests: 2,
		},
		"an answer shows that all before it is prefilled": {
			do: func(l *State) {
				add(l, 0, 100)
				second := add(l, 0, 100)
				add(l, 0, 100)
				l.Release(second, Answered, 0)
			}, wantQueue: 100, wantRequests: 2,
		},
		"an answer whose tokens have drained changes no queue": {
			do: func(l *State) {
				first := add(l, 0, 100)
				add(l, 0, 300)
				l.Release(first, Answered, 2*s)
			}, at: 2 * s, wantQueue: 200, wantRequests: 1,
		},
		"a call that leaves takes its tokens along": {
			do: func(l *State) {
				add(l, 0, 100)
				second := add(l, 0, 200)
				add(l, 0, 400)
				l.Release(second, Abandoned, 0)
			}, wantQueue: 500, wantRequests: 2,
		},
		"a call that leaves half prefilled takes the rest": {
			do: func(l *State) {
				first := add(l, 0, 200)
				l.Release(first, Abandoned, s)
			}, at: s, wantQueue: 0,
		},
		"a call that leaves after its prefill takes nothing": {
			do: func(l *State) {
				first := add(l, 0, 100)
				add(l, 0, 500)
				l.Release(first, Abandoned, 2*s)
			}, at: 2 * s, wantQueue: 400, wantRequests: 1,
		},
		"a call that is refused takes its tokens along, and nothing before it": {
			do: func(l *State) {
				add(l, 0, 100)
				second := add(l, 0, 200)
				add(l, 0, 400)
				l.Release(second, Refused, 0)
			}, wantQueue: 500, wantRequests: 2,
		},
		"a call that is shed does too": {
			do: func(l *State) {
				add(l, 0, 100)
				l.Release(add(l, 0, 200), Shed, 0)
			}, wantQueue: 100, wantRequests: 1,
		},
		"a call that ends before its turn shows nothing of those before it": {
			do: func(l *State) {
				add(l, 0, 1000)
				second := add(l, 0, 100)
				l.Release(second, Ended, s)
			}, at: s, wantQueue: 900, wantRequests: 1,
		},
		"calls without tokens at one place are kept apart": {
			do: func(l *State) {
				first, second := add(l, 0, 0), add(l, 0, 0)
				l.Release(second, Answered, s)
				l.Release(first, Answered, s)
				add(l, s, 0)
			}, at: s, wantQueue: 1, wantRequests: 1,
		},
		"a call that moves brings what is not cached there": {
			do: func(l *State) {
				add(l, 0, 100)
				l.Move(add(l, 0, 300), 1, 50, 0)
			}, wantQueue: 100, wantOther: 50, wantRequests: 1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			state := newState(2)
			tt.do(state)
			if got := state.Queue(0, tt.at); !near(got, tt.wantQueue) {
				t.Errorf("queue is %v tokens, want %v", got, tt.wantQueue)
			}
			if got := state.InFlight(0); got != tt.wantRequests {
				t.Errorf("%d requests, want %d", got, tt.wantRequests)
			}
			if got := state.Queue(1, tt.at); !near(got, tt.wantOther) {
				t.Errorf("the other's queue is %v tokens, want %v", got, tt.wantOther)
			}
		})
	}
}

func TestReleaseTellsWhetherThePromptWasPrefilled(t *testing.T) {
	tests := map[string]struct {
		outcome Outcome
		after   time.Duration
		known   bool          // its speed was observed for long
		usual   time.Duration // what the pool's whole answers take
		stream  bool
		hung    bool // a call waits there for an hour
		want    bool
	}{
		"answered":           {outcome: Answered, want: true},
		"abandoned at once":  {outcome: Abandoned, usual: 10 * s},
		"abandoned half way": {outcome: Abandoned, after: s, usual: 10 * s},
		"abandoned after its time, while others generate for longer":   {outcome: Abandoned, after: 3 * s, usual: 10 * s, want: true},
		"abandoned when others are answered":                           {outcome: Abandoned, after: 11 * s, usual: 10 * s},
		"abandoned after its time, at an endpoint that never answered": {outcome: Abandoned, after: 3 * s},
		"abandoned after its time, at one that is silent":              {outcome: Abandoned, after: 3 * s, usual: 10 * s, hung: true},
		"abandoned before a stream that was due":                       {outcome: Abandoned, after: 3 * s, usual: 10 * s, stream: true},
		"failed at once":                                               {outcome: Failed},
		"failed, a full time later":                                    {outcome: Failed, after: 3 * s, usual: 10 * s},
		"refused, a full time later":                                   {outcome: Refused, after: 3 * s},
		"shed, a full time later":                                      {outcome: Shed, after: 3 * s},
		"ended at once":                                                {outcome: Ended},
		"ended after a fiftieth":                                       {outcome: Ended, after: s / 25},
		"ended after a twentieth, as a server faster than assumed may": {outcome: Ended, after: s / 10, want: true},
		"ended after a twentieth, of a server whose speed is known":    {outcome: Ended, after: s / 10, known: true},
		"ended after a third, of a server whose speed is known":        {outcome: Ended, after: 2 * s / 3, known: true, want: true},
		"ended after its time":                                         {outcome: Ended, after: 3 * s, want: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			state := newState(2)
			if tt.known {
				state.loads[0].speed = speed{tokens: 100 * priorSeconds, seconds: priorSeconds}
			}
			if tt.usual > 0 {
				c := state.Reserve(1, 0, callFor("", 0), 0)
				state.Release(&c, Answered, tt.usual)
			}
			came := time.Hour
			if tt.hung {
				c := state.Reserve(0, 0, callFor("", 0), 0)
				defer state.Release(&c, Abandoned, 2*came)
				state.Age(came, numbers(2))
			}
			call := callFor("", 200)
			call.Facts.Stream = tt.stream
			c := state.Reserve(0, came, call, 200)
			if got := state.Release(&c, tt.outcome, came+tt.after); got != tt.want {
				t.Errorf("prefilled: %v, want %v", got, tt.want)
			}
		})
	}
}
