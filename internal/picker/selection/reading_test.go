package selection

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// A reading bounds the queue by the calls that wait, whatever the fluid says.
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

// A deferred call is in no queue: others run past it. Nothing shows that its prompt was prefilled.
func TestDeferredCallsAreNoQueue(t *testing.T) {
	prepare := func(r Reading) (state *State, deferred Claim) {
		state = newState(1)
		state.Observe(0, s/4, &Reading{At: s / 4, MaxAdapters: 2, WaitingAdapters: []string{"chat"}})
		add(state, s, 100)
		deferred = state.Reserve(0, s, callFor("chat", 5000), 5000)
		state.Reserve(0, s, callFor("chat", 5000), 5000)
		add(state, s, 200)
		r.At, r.MaxAdapters, r.RunningAdapters = 2*s, 2, []string{"code", "sql"}
		state.Observe(0, 2*s, &r)
		return state, deferred
	}
	for name, tt := range map[string]struct {
		reading     Reading
		wantQueue   float64
		wantForeign float64
	}{
		"none waits for its turn":       {Reading{Running: 4, Deferred: 2, WaitingSplit: true}, 200, 2},
		"one waits for its turn":        {Reading{Running: 3, Waiting: 1, Deferred: 2, WaitingSplit: true}, 300, 2},
		"others' calls are deferred":    {Reading{Running: 4, Deferred: 9, WaitingSplit: true}, 200, 2},
		"nobody tells them apart":       {Reading{Running: 4, Waiting: 2}, 5200 + 5000, 2},
		"one of ours may be prefilling": {Reading{Running: 5, Deferred: 1, WaitingSplit: true}, 200, 2},
	} {
		t.Run(name, func(t *testing.T) {
			state, _ := prepare(tt.reading)
			if got := state.Queue(0, 2*s); got > tt.wantQueue+1 || name == "nobody tells them apart" && got < 5000 {
				t.Errorf("queue is %v tokens, want at most %v", got, tt.wantQueue)
			}
			if got := state.loads[0].reading.foreign; got != tt.wantForeign {
				t.Errorf("%v calls are foreign, want %v", got, tt.wantForeign)
			}
		})
	}
	state, c := prepare(Reading{Running: 4, Deferred: 2, WaitingSplit: true})
	if got := state.Computed(&c, 3*s); got != 0 {
		t.Errorf("%d tokens of a deferred call are taken to be prefilled", got)
	}
	if state.Release(&c, Ended, 3*s) {
		t.Error("the prompt of a deferred call is taken to be prefilled")
	}
}

// While calls are deferred, neither the queue nor the counters tell a speed.
func TestDeferredCallsTellNoSpeed(t *testing.T) {
	for name, tt := range map[string]struct {
		deferred int
		learns   bool
	}{"none": {0, true}, "some": {1, false}} {
		t.Run("the queue, deferred: "+name, func(t *testing.T) {
			state := newState(1)
			for range 8 {
				add(state, s, 100)
			}
			state.Observe(0, 2*s, &Reading{At: 2 * s, Running: 1, Waiting: 7, WaitingSplit: true})
			state.Observe(0, 3*s, &Reading{At: 3 * s, Running: 2, Waiting: 6, WaitingSplit: true})
			state.Observe(0, 5*s, &Reading{At: 5 * s, Running: 4, Waiting: 4, Deferred: tt.deferred, WaitingSplit: true})
			state.Observe(0, 7*s, &Reading{At: 7 * s, Running: 6, Waiting: 2, Deferred: tt.deferred, WaitingSplit: true})
			state.Observe(0, 8*s, &Reading{At: 8 * s, Running: 7, Waiting: 1, WaitingSplit: true})
			if got := state.loads[0].speed.seconds > 2; got != tt.learns {
				t.Errorf("a speed was observed for %v s", state.loads[0].speed.seconds)
			}
		})
		t.Run("the counters, deferred: "+name, func(t *testing.T) {
			state := stateWith(1, picksettings.Defaults())
			for i := range int64(20) {
				at := time.Duration(i+1) * s
				state.Observe(0, at, &Reading{
					At: at, MaxAdapters: 2, Waiting: 1, Deferred: tt.deferred, WaitingSplit: true,
					Counters: Counters{Prefilled: 2000 * i, FirstTokens: i, FirstTokenSeconds: 0.1 * float64(i)},
				})
			}
			if got := state.loads[0].speed.seconds > 0; got != tt.learns {
				t.Errorf("a speed was observed for %v s", state.loads[0].speed.seconds)
			}
		})
	}
	t.Run("the counters of a server that does not tell", func(t *testing.T) {
		for adapters, learns := range map[int]bool{0: true, 2: false} {
			state := stateWith(1, picksettings.Defaults())
			for i := range int64(20) {
				at := time.Duration(i+1) * s
				state.Observe(0, at, &Reading{
					At: at, MaxAdapters: adapters, Waiting: 1,
					Counters: Counters{Prefilled: 2000 * i, FirstTokens: i, FirstTokenSeconds: 0.1 * float64(i)},
				})
			}
			if got := state.loads[0].speed.seconds > 0; got != learns {
				t.Errorf("with %d slots a speed was observed for %v s", adapters, state.loads[0].speed.seconds)
			}
		}
	})
}

func TestObserveRefusesWhatCannotBe(t *testing.T) {
	tests := map[string]Reading{
		"older than the last": {At: s, Waiting: 2},
		"as old as the last":  {At: 2 * s, Waiting: 2},
		"negative waiting":    {At: 3 * s, Waiting: -1},
		"negative running":    {At: 3 * s, Waiting: 2, Running: -5},
		"negative deferred":   {At: 3 * s, Waiting: 2, Deferred: -1},
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
		{At: 6 * s, MaxAdapters: -1}, {At: 7 * s, MaxAdapters: 1, Deferred: math.MaxInt, RunningAdapters: []string{"a"}},
	}
	state := stateWith(2, picksettings.Defaults())
	for i, r := range readings {
		now := time.Duration(i+1) * s
		add(state, now-s/2, 100)
		state.Observe(0, now, &r)
		v := &view{State: state, Candidates: numbers(2), Cached: make([]int32, 2)}
		for _, c := range pickCall(v, callFor("a", 100), now, 1) {
			if math.IsNaN(c.Cost) || math.IsInf(c.Cost, 0) {
				t.Fatalf("after reading %d endpoint %d costs %v", i, c.Endpoint, c.Cost)
			}
		}
	}
}

// served is a simulated endpoint 0 that prefills calls of 1,000 tokens one after the other, and its readings.
type served struct {
	rate     float64 // tokens a second
	interval time.Duration
	// every is the time between two calls, or its mean if random is set. At most 12 calls are there at once.
	every  time.Duration
	random bool
	// decoding is how many foreign calls decode all the time, and others how many come with each of the picker's own.
	decoding, others int
	// tells says that readings have the server's counters.
	tells bool
}

// overload is a server that gets more calls than it can prefill, however fast it is.
func overload(rate float64, interval time.Duration) served {
	return served{rate: rate, interval: interval, every: min(s/10, time.Duration(900/rate*float64(s)))}
}

// headRoom is a server that prefills half of the time, and reports counters.
func headRoom(rate float64, interval time.Duration) served {
	return served{rate: rate, interval: interval, every: time.Duration(2000 / rate * float64(s)), tells: true}
}

func (e served) serve(state *State, lasts time.Duration) {
	const step = time.Millisecond
	type call struct {
		claim *Claim // nil for one of others
		came  time.Duration
		left  float64
	}
	var queue []call
	var counters Counters
	rnd := rand.New(rand.NewPCG(7, 8))
	next := step
	for now := step; now <= lasts; now += step {
		for ; next <= now && len(queue) < 12; next += e.gap(rnd) {
			queue = append(queue, call{add(state, now, 1000), now, 1000})
			for range e.others {
				queue = append(queue, call{nil, now, 1000})
			}
		}
		next = max(next, now)
		for work := e.rate * step.Seconds(); work > 0 && len(queue) > 0; {
			c := &queue[0]
			did := min(work, c.left)
			c.left -= did
			if work -= did; c.left > 0 {
				break
			}
			counters.Prefilled += 1000
			counters.FirstTokens++
			counters.FirstTokenSeconds += (now - c.came).Seconds() - work/e.rate
			if c.claim != nil {
				state.Release(c.claim, Answered, now)
			}
			queue = queue[1:]
		}
		if now%e.interval == 0 {
			running := min(len(queue), 1)
			r := Reading{At: now, Running: running + e.decoding, Waiting: len(queue) - running}
			if e.tells {
				r.Counters = counters
			}
			state.Observe(0, now, &r)
		}
		state.Age(now, numbers(state.Len()))
	}
}

func (e served) gap(rnd *rand.Rand) time.Duration {
	if e.random {
		return time.Duration(rnd.ExpFloat64() * float64(e.every))
	}
	return e.every
}

func TestSpeedIsLearned(t *testing.T) {
	often, seldom := 50*time.Millisecond, s
	random := headRoom(80_000, often)
	random.random = true
	decoding := overload(2667, often)
	decoding.decoding = 50
	mixed := overload(2667, often)
	mixed.others, mixed.every, mixed.tells = 1, s/2, true
	for name, tt := range map[string]served{
		"three times slower, read often":      overload(2667, often),
		"three times slower, read seldom":     overload(2667, seldom),
		"as assumed":                          overload(8000, often),
		"a little slower":                     overload(6500, often),
		"ten times slower":                    overload(800, often),
		"ten times faster, with head-room":    headRoom(80_000, often),
		"ten times faster, read seldom":       headRoom(80_000, seldom),
		"ten times faster, at random":         random,
		"ten times slower, with head-room":    headRoom(800, often),
		"beside others that decode":           decoding,
		"beside others that prefill as often": mixed,
	} {
		t.Run(name, func(t *testing.T) {
			state := stateWith(1, picksettings.Defaults())
			tt.serve(state, 20*s)
			if got := state.Rate(0); got < 0.75*tt.rate || got > 1.33*tt.rate {
				t.Errorf("after 20 s taken for %.0f tokens a second, want about %.0f", got, tt.rate)
			}
		})
	}
}

// Foreign calls that wait among the picker's own take prefill; foreign calls that decode take none.
func TestOnlyWaitingCallsOfOthersArePrefilled(t *testing.T) {
	for name, decoding := range map[string]int{"none decodes": 0, "50 decode": 50} {
		t.Run(name, func(t *testing.T) {
			state := newState(1)
			state.Observe(0, s/2, &Reading{At: s / 2, Running: decoding})
			for range 8 {
				add(state, s, 100)
			}
			// Of 8 own and 8 foreign calls, 2 and then 10 have begun: 3 s for 4 own and 4 foreign ones.
			state.Observe(0, 2*s, &Reading{At: 2 * s, Running: decoding + 2, Waiting: 14})
			state.Observe(0, 4*s, &Reading{At: 4 * s, Running: decoding + 10, Waiting: 6})
			if v := state.loads[0].speed; !near(v.tokens, 800) || !near(v.seconds, 3) {
				t.Errorf("%v tokens were prefilled in %v s, want 800 in 3", v.tokens, v.seconds)
			}
		})
	}
}

// One endpoint's observed or false speed does not change what the other endpoints are taken for.
func TestMeanSpeedIsOfMost(t *testing.T) {
	for name, tt := range map[string]struct {
		seen []float64 // by endpoint; 0 where nothing was seen
		busy float64   // the seconds over which that was seen
		want float64
	}{
		"nothing seen":                {seen: []float64{0, 0, 0}, want: 8000},
		"one, much faster":            {seen: []float64{1e6, 0, 0}, busy: 20, want: 8000},
		"one, much slower":            {seen: []float64{100, 0, 0}, busy: 20, want: 8000},
		"one, a little faster":        {seen: []float64{12_000, 0, 0}, busy: 20, want: (8000.0 + 5*12_000) / 6},
		"two that are slower":         {seen: []float64{800, 800, 0}, busy: 20, want: 800},
		"one of many is slower":       {seen: []float64{800, 24_000, 24_000, 24_000}, busy: 20, want: 24_000},
		"one of many tells of wonder": {seen: []float64{1e7, 800, 800, 800}, busy: 20, want: 800},
	} {
		t.Run(name, func(t *testing.T) {
			state := stateWith(len(tt.seen), picksettings.Defaults())
			for n, rate := range tt.seen {
				if rate > 0 {
					state.loads[n].speed = speed{tokens: rate * tt.busy, seconds: tt.busy}
				}
			}
			state.Age(0, numbers(state.Len()))
			if got := state.meanRate; math.Abs(got-tt.want) > 1e-6*tt.want {
				t.Errorf("the pool's mean is %v tokens a second, want %v", got, tt.want)
			}
		})
	}
}

// After impossible counters the speed is still valid, and soon the true one again.
func TestCountersThatLie(t *testing.T) {
	for name, c := range map[string]Counters{
		"as many tokens as can be": {Prefilled: 1 << 53, FirstTokens: 1, FirstTokenSeconds: 1},
		"an endless time":          {Prefilled: 1000, FirstTokens: 1, FirstTokenSeconds: math.MaxFloat64},
		"no number":                {Prefilled: 1000, FirstTokens: 1, FirstTokenSeconds: math.NaN()},
		"no time at all":           {Prefilled: 1000, FirstTokens: 1 << 53},
		"fewer than before":        {Prefilled: -1 << 53, FirstTokens: -1, FirstTokenSeconds: -1},
	} {
		t.Run(name, func(t *testing.T) {
			state := stateWith(1, picksettings.Defaults())
			for now := s; now <= 30*s; now += s {
				r := &Reading{At: now}
				if now >= 5*s {
					r.Counters = c
				}
				state.Observe(0, now, r)
				state.Age(now, numbers(1))
			}
			if got := state.loads[0].speed.seconds; got > speedMemory {
				t.Errorf("within 30 s it prefilled for %v s", got)
			}
			if got := state.Rate(0); !(got >= 8000/surprise && got <= 8000*surprise) {
				t.Errorf("one lie made the speed %v tokens a second, more than %d times what was assumed or less", got, surprise)
			}
		})
	}
}

// Old observations are forgotten: an endpoint that gets no calls any more gets another chance, at once if its call is
// the first after a long time.
func TestSpeedIsForgotten(t *testing.T) {
	for name, every := range map[string]time.Duration{
		"while others get calls":   s / 4,
		"while there are no calls": 5 * time.Minute,
	} {
		t.Run(name, func(t *testing.T) {
			state := stateWith(3, picksettings.Defaults())
			overload(800, 50*time.Millisecond).serve(state, 10*s)
			slow := state.Rate(0)
			for now := 10 * s; now < 10*s+5*time.Minute; {
				now += every
				state.Age(now, numbers(3))
			}
			if got := state.Rate(0); slow > 2000 || got < 7000 {
				t.Errorf("taken for %.0f tokens a second while slow and for %.0f five minutes later, want under 2000 and over 7000", slow, got)
			}
		})
	}
}

// New settings keep learned speeds.
func TestSpeedOutlastsSettings(t *testing.T) {
	state := stateWith(1, picksettings.Defaults())
	overload(800, 50*time.Millisecond).serve(state, 10*s)
	state.Age(11*s, numbers(1))
	before := state.Rate(0)
	state.Configure(picksettings.Defaults())
	state.Age(11*s+1, numbers(1))
	if got := state.Rate(0); !near(got, before) {
		t.Errorf("taken for %.0f tokens a second, want %.0f as before the settings were set", got, before)
	}
}

// Foreign calls count while the reading is fresh. Then the endpoint counts as the others do, and never as idle.
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
	// Endpoint 1 is still read, endpoint 0 is not.
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

// A call that does not fit into one endpoint's free KV cache goes to an endpoint into which it fits.
func TestMemoryCounts(t *testing.T) {
	state := stateWith(2, picksettings.Defaults())
	state.Observe(0, s, &Reading{At: s, KVUsage: 0.99, KVTokens: 100_000})
	state.Observe(1, s, &Reading{At: s, KVUsage: 0.4, KVTokens: 100_000, Running: 20})
	v := &view{State: state, Candidates: numbers(2), Cached: make([]int32, 2)}
	if got := pickCall(v, callFor("", 8000), s, 1)[0].Endpoint; got != 1 {
		t.Errorf("8,000 tokens go to endpoint %d, want 1, where there is room", got)
	}
	if got := pickCall(v, callFor("", 500), s, 1)[0].Endpoint; got != 0 {
		t.Errorf("500 tokens go to endpoint %d, want 0, which has fewer calls and room for these", got)
	}
}
