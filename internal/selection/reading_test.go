package selection

import (
	"math"
	"testing"
	"time"
)

// A reading bounds the queue by what waits, whatever the fluid says.
func TestObserveCorrectsTheQueue(t *testing.T) {
	tests := map[string]struct {
		reading   Reading
		at        time.Duration // of the reading
		now       time.Duration
		later     int // tokens of a call that comes at now, before the reading is known
		wantQueue float64
	}{
		// Three calls of 100 tokens came at 0, so the fluid has 200 left after 1 s and none after 3 s.
		"what waits has not begun":            {reading: Reading{Running: 1, Waiting: 2}, at: 3 * s, wantQueue: 200},
		"the one that runs may be half done":  {reading: Reading{Running: 1, Waiting: 2}, at: s / 2, wantQueue: 250},
		"nothing waits: two have begun":       {reading: Reading{Running: 3}, at: s / 2, wantQueue: 100},
		"all wait":                            {reading: Reading{Waiting: 3}, at: 3 * s, wantQueue: 300},
		"the reading is a second old":         {reading: Reading{Running: 1, Waiting: 2}, at: 3 * s, now: 4 * s, wantQueue: 100},
		"a call since then is behind":         {reading: Reading{Running: 1, Waiting: 2}, at: 3 * s, now: 3*s + 1, later: 50, wantQueue: 250},
		"more wait than are the picker's own": {reading: Reading{Running: 3, Waiting: 3}, at: 3 * s, wantQueue: 300},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			state := newState(1)
			for range 3 {
				add(state, 0, 100)
			}
			now := max(tt.now, tt.at)
			if tt.later > 0 {
				add(state, now, tt.later)
			}
			tt.reading.At = tt.at
			state.Observe(0, now, &tt.reading)
			if got := state.Queue(0, now); !(math.Abs(got-tt.wantQueue) < 1e-3) {
				t.Errorf("queue is %v tokens, want %v", got, tt.wantQueue)
			}
		})
	}
}

func TestObserveRefusesWhatCannotBe(t *testing.T) {
	tests := map[string]Reading{
		"older than the last": {At: s, Waiting: 2},
		"as old as the last":  {At: 2 * s, Waiting: 2},
		"negative waiting":    {At: 3 * s, Waiting: -1},
		"negative running":    {At: 3 * s, Waiting: 2, Running: -5},
	}
	for name, reading := range tests {
		t.Run(name, func(t *testing.T) {
			state := newState(1)
			add(state, 0, 100)
			add(state, 0, 100)
			state.Observe(0, 2*s, &Reading{At: 2 * s, Running: 2})
			state.Observe(0, 4*s, &reading)
			if got := state.Queue(0, 4*s); got != 0 {
				t.Errorf("queue is %v tokens, want 0", got)
			}
		})
	}
}

// Readings that no server should send leave a state that still picks.
func TestObserveSurvives(t *testing.T) {
	readings := []Reading{
		{At: -time.Hour}, {At: math.MaxInt64, Waiting: 1}, {At: s, KVUsage: math.NaN(), KVTokens: 5},
		{At: 2 * s, KVUsage: 1e300, KVTokens: math.MaxInt}, {At: 3 * s, KVUsage: math.Inf(1), KVTokens: 1},
		{At: 4 * s, Running: math.MaxInt, Waiting: math.MaxInt}, {At: 5 * s, MaxAdapters: math.MaxInt, RunningAdapters: []string{"", "a"}},
		{At: 6 * s, MaxAdapters: -1},
	}
	state := stateWith(2, Defaults())
	for i, r := range readings {
		now := time.Duration(i+1) * s
		add(state, now-s/2, 100)
		state.Observe(0, now, &r)
		v := &View{State: state, Candidates: numbers(2), Cached: make([]int32, 2)}
		for _, c := range pickCall(v, callFor("a", 100), now, 1) {
			if math.IsNaN(c.Cost) || math.IsInf(c.Cost, 0) {
				t.Fatalf("after reading %d endpoint %d costs %v", i, c.Endpoint, c.Cost)
			}
		}
	}
}

// serve lets a simulated endpoint 0 of the given speed work off calls of 1,000 tokens that come faster than it works,
// with a reading every interval.
func serve(state *State, rate float64, interval, lasts time.Duration) {
	type running struct {
		claim *Claim
		left  float64
	}
	var queue []running
	const step = 10 * time.Millisecond
	for now := step; now <= lasts; now += step {
		if now%(s/10) == 0 && len(queue) < 12 {
			queue = append(queue, running{add(state, now, 1000), 1000})
		}
		for work := rate * step.Seconds(); work > 0 && len(queue) > 0; {
			did := min(work, queue[0].left)
			queue[0].left -= did
			if work -= did; queue[0].left <= 0 {
				state.Release(queue[0].claim, Answered, now)
				queue = queue[1:]
			}
		}
		if now%interval == 0 {
			running := min(len(queue), 1)
			state.Observe(0, now, &Reading{At: now, Running: running, Waiting: len(queue) - running})
		}
		state.Age(now, numbers(state.Len()))
	}
}

func TestSpeedIsLearned(t *testing.T) {
	for name, tt := range map[string]struct {
		rate     float64
		interval time.Duration
	}{
		"three times slower, read often":  {rate: 2667, interval: 50 * time.Millisecond},
		"three times slower, read seldom": {rate: 2667, interval: time.Second},
		"as assumed":                      {rate: 8000, interval: 50 * time.Millisecond},
		"a little slower":                 {rate: 6500, interval: 50 * time.Millisecond},
		"ten times slower":                {rate: 800, interval: 50 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			state := stateWith(1, Defaults())
			serve(state, tt.rate, tt.interval, 10*s)
			if got := state.Rate(0); got < 0.75*tt.rate || got > 1.33*tt.rate {
				t.Errorf("after 10 s taken for %.0f tokens a second, want about %.0f", got, tt.rate)
			}
		})
	}
}

// What was seen long ago is forgotten: an endpoint that is not given calls any more gets another chance.
func TestSpeedIsForgotten(t *testing.T) {
	state := stateWith(3, Defaults())
	serve(state, 800, 50*time.Millisecond, 10*s)
	slow := state.Rate(0)
	for now := 10 * s; now < 5*time.Minute; now += s / 4 {
		state.Age(now, numbers(3))
	}
	if got := state.Rate(0); slow > 2000 || got < 7000 {
		t.Errorf("taken for %.0f tokens a second while slow and for %.0f five minutes later, want under 2000 and over 7000", slow, got)
	}
}

// Calls of others count while the reading is fresh; then the endpoint is like the others are, never idle.
func TestReadingsAge(t *testing.T) {
	state := newState(3)
	state.Observe(0, s, &Reading{At: s, Running: 40})
	state.Observe(1, s, &Reading{At: s, Running: 10})
	calls := func(now time.Duration) (out [3]float64) {
		state.Age(now, numbers(3))
		for i := range out {
			out[i] = state.hot[i].calls
		}
		return out
	}
	if got := calls(2 * s); got != [3]float64{40, 10, 25} {
		t.Errorf("calls while fresh are %v, want 40, 10 and, without a reading, their mean", got)
	}
	// Endpoint 1 goes on telling, 0 does not.
	state.Observe(1, 5*s+s/2, &Reading{At: 5*s + s/2, Running: 10})
	got := calls(5*s + s/2)
	if !(got[0] > got[1] && got[0] < 40 && got[2] > 10) {
		t.Errorf("calls with an old reading at endpoint 0 are %v, want it between the others' and its own", got)
	}
	state.Observe(1, 60*s, &Reading{At: 60 * s, Running: 10})
	if got := calls(60 * s); got != [3]float64{10, 10, 10} {
		t.Errorf("calls with a dead reading are %v, want those of the one that tells", got)
	}
}

// An endpoint that is short of KV memory is passed over for one that is not, by a call that does not fit.
func TestMemoryCounts(t *testing.T) {
	state := stateWith(2, Defaults())
	state.Observe(0, s, &Reading{At: s, KVUsage: 0.99, KVTokens: 100_000})
	state.Observe(1, s, &Reading{At: s, KVUsage: 0.4, KVTokens: 100_000, Running: 20})
	v := &View{State: state, Candidates: numbers(2), Cached: make([]int32, 2)}
	if got := pickCall(v, callFor("", 8000), s, 1)[0].Endpoint; got != 1 {
		t.Errorf("8,000 tokens go to endpoint %d, want 1, where there is room", got)
	}
	if got := pickCall(v, callFor("", 500), s, 1)[0].Endpoint; got != 0 {
		t.Errorf("500 tokens go to endpoint %d, want 0, which has fewer calls and room for these", got)
	}
}
