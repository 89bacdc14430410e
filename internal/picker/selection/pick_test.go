package selection

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// endpoint describes one endpoint of a test's pool.
type endpoint struct {
	queue    int // tokens
	requests int
	cached   int32   // blocks
	rate     float64 // tokens a second; 0 is the default
	lastPick uint64
	failed   bool // lately
	out      bool // not a candidate
}

// view is a state with the candidates of the next call, and what they hold of its prompt.
type view struct {
	*State
	Candidates, Cached []int32
}

// of makes a call one to the view's candidates.
func (v *view) of(c *Call) *Call {
	c.Candidates, c.Cached = v.Candidates, v.Cached
	return c
}

func viewOf(endpoints []endpoint) *view {
	v := &view{State: stateWith(len(endpoints), picksettings.Defaults())}
	for i, e := range endpoints {
		n := int32(i)
		if e.rate > 0 {
			v.hot[n].perToken, v.hot[n].rate = 1/e.rate, e.rate
		}
		for c := range e.requests {
			tokens := 0
			if c == 0 {
				tokens = e.queue
			}
			v.Reserve(n, 0, callFor("", tokens), tokens)
		}
		if e.failed {
			c := v.Reserve(n, 0, callFor("", 0), 0)
			v.Release(&c, Failed, 0)
		}
		v.hot[n].lastPick = e.lastPick
		v.Cached = append(v.Cached, e.cached)
		if !e.out {
			v.Candidates = append(v.Candidates, n)
		}
	}
	return v
}

func factsOf(tokens int) *request.Facts {
	return &request.Facts{PromptBytes: tokens * 4}
}

func pickCall(v *view, c *Call, now time.Duration, seed uint64) []Choice {
	var out [Choices]Choice
	v.Age(now, v.Candidates)
	n := v.Pick(v.of(c), now, rand.New(rand.NewPCG(seed, 0)), &out)
	return out[:n]
}

// pickAll picks without aging, which would level the speeds that tests set.
func pickAll(v *view, tokens int, now time.Duration, seed uint64) []Choice {
	var out [Choices]Choice
	n := v.Pick(v.of(callFor("", tokens)), now, rand.New(rand.NewPCG(seed, 0)), &out)
	return out[:n]
}

func TestPickOrder(t *testing.T) {
	tests := map[string]struct {
		endpoints []endpoint
		tokens    int
		now       time.Duration
		want      []int32 // as far as it is determined
		wantLen   int
	}{
		"an idle endpoint before a cached prefix behind a queue": {
			endpoints: []endpoint{{queue: 20_000, requests: 1, cached: 100}, {}},
			tokens:    6400,
			want:      []int32{1, 0},
			wantLen:   2,
		},
		"a cached prefix behind the same queue where all have long ones": {
			endpoints: []endpoint{{queue: 100_000, requests: 1, cached: 100}, {queue: 80_000, requests: 1}},
			tokens:    6400,
			want:      []int32{0, 1},
			wantLen:   2,
		},
		"no candidate": {endpoints: []endpoint{{out: true}}},
		"one candidate": {
			endpoints: []endpoint{{out: true}, {}}, tokens: 100, want: []int32{1}, wantLen: 1,
		},
		"two are ranked": {
			endpoints: []endpoint{{requests: 1}, {}}, want: []int32{1, 0}, wantLen: 2,
		},
		"three of four are ranked, by load": {
			endpoints: []endpoint{{requests: 3}, {requests: 1}, {requests: 4}, {requests: 2}},
			want:      []int32{1, 3, 0}, wantLen: 3,
		},
		"the cached prefix wins over an idle endpoint": {
			endpoints: []endpoint{{}, {requests: 2, cached: 10}, {}}, tokens: 700, want: []int32{1}, wantLen: 3,
		},
		"one cached block outweighs one call more": {
			endpoints: []endpoint{{requests: 1}, {requests: 2, cached: 1}}, tokens: 100, want: []int32{1, 0}, wantLen: 2,
		},
		"the longer prefix wins": {
			endpoints: []endpoint{{cached: 3}, {cached: 7}, {cached: 5}}, tokens: 700, want: []int32{1, 2, 0}, wantLen: 3,
		},
		"a queue that costs more than the cache saves is left": {
			endpoints: []endpoint{{queue: 5000, requests: 1, cached: 10}, {}}, tokens: 700, want: []int32{1, 0}, wantLen: 2,
		},
		"a queue that costs less than the cache saves is joined": {
			endpoints: []endpoint{{queue: 1000, requests: 1, cached: 10}, {}}, tokens: 700, want: []int32{0, 1}, wantLen: 2,
		},
		"a queue drains": {
			endpoints: []endpoint{{queue: 5000, requests: 1, cached: 10}, {}}, tokens: 700, now: time.Second,
			want: []int32{0, 1}, wantLen: 2,
		},
		"the same queue waits longer where prefilling is slow": {
			endpoints: []endpoint{{queue: 1000, requests: 1, rate: 2000}, {queue: 2000, requests: 1, rate: 8000}}, tokens: 10, want: []int32{1, 0}, wantLen: 2,
		},
		"over twice the mean of calls, the cache does not count": {
			endpoints: []endpoint{{requests: 24, cached: 100}, {requests: 3}, {requests: 2}}, tokens: 6500,
			want: []int32{2, 1, 0}, wantLen: 3,
		},
		"in one batch, calls are no reason to leave the cache": {
			endpoints: []endpoint{{requests: 7, cached: 100}, {}, {}}, tokens: 6500, want: []int32{0}, wantLen: 3,
		},
		"of the healthy only, whatever is cached": {
			endpoints: []endpoint{{failed: true, cached: 10}, {requests: 30}, {requests: 20}}, tokens: 700,
			want: []int32{2, 1, 0}, wantLen: 3,
		},
		"of the unhealthy, where there are no others": {
			endpoints: []endpoint{{failed: true}, {failed: true, cached: 10}}, tokens: 700, want: []int32{1, 0}, wantLen: 2,
		},
		"an unhealthy endpoint has its second chance": {
			endpoints: []endpoint{{failed: true, cached: 10}, {}}, tokens: 700, now: 2 * time.Second, want: []int32{0, 1}, wantLen: 2,
		},
		"all over the bound": {
			endpoints: []endpoint{{requests: 200}, {requests: 199}}, want: []int32{1, 0}, wantLen: 2,
		},
		"a candidate out of the subset is not ranked": {
			endpoints: []endpoint{{out: true, cached: 10}, {requests: 5}, {out: true}}, tokens: 700, want: []int32{1}, wantLen: 1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				got := pickAll(viewOf(tt.endpoints), tt.tokens, tt.now, seed)
				if len(got) != tt.wantLen {
					t.Fatalf("%d choices, want %d", len(got), tt.wantLen)
				}
				var order []int32
				for _, c := range got[:len(tt.want)] {
					order = append(order, c.Endpoint)
				}
				if diff := cmp.Diff(tt.want, order); diff != "" {
					t.Fatalf("order with seed %d (-want +got):\n%s", seed, diff)
				}
			}
		})
	}
}

func TestPickChoicesAreDistinct(t *testing.T) {
	for n := 1; n <= 6; n++ {
		v := viewOf(make([]endpoint, n))
		for seed := range uint64(50) {
			seen := map[int32]bool{}
			for _, c := range pickAll(v, 10, 0, seed) {
				seen[c.Endpoint] = true
			}
			if want := min(n, Choices); len(seen) != want {
				t.Fatalf("of %d endpoints, %d distinct choices, want %d", n, len(seen), want)
			}
		}
	}
}

func TestPickCountsTokens(t *testing.T) {
	tests := map[string]struct {
		tokens int
		cached int32
		want   Choice
	}{
		"nothing cached":              {tokens: 1000, want: Choice{Uncached: 1000, Work: 1000}},
		"a part cached":               {tokens: 1000, cached: 10, want: Choice{Cached: 640, Uncached: 360, Work: 360}},
		"all cached leaves one token": {tokens: 640, cached: 10, want: Choice{Cached: 639, Uncached: 1, Work: 1}},
		"no prompt":                   {want: Choice{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := pickAll(viewOf([]endpoint{{cached: tt.cached}}), tt.tokens, 0, 1)
			if diff := cmp.Diff([]Choice{tt.want}, got, cmpopts.IgnoreFields(Choice{}, "Cost")); diff != "" {
				t.Errorf("choice (-want +got):\n%s", diff)
			}
		})
	}
}

// Of equals, two are drawn and the one whose last pick is longer ago is taken. Over many draws each of the equals is
// drawn, and the one picked last never wins against another.
func TestPickTies(t *testing.T) {
	endpoints := []endpoint{{lastPick: 4}, {lastPick: 1}, {requests: 1}, {lastPick: 3}, {lastPick: 2}}
	count := map[int32]int{}
	for seed := range uint64(600) {
		count[pickAll(viewOf(endpoints), 10, 0, seed)[0].Endpoint]++
	}
	if count[0] != 0 || count[2] != 0 {
		t.Errorf("picked the most recent %d times and the busier %d times, want never", count[0], count[2])
	}
	// Of the 6 pairs of four, the oldest wins 3, the next 2, the third 1.
	if count[1] <= count[4] || count[4] <= count[3] || count[3] == 0 {
		t.Errorf("picks by age, oldest first: %d, %d, %d; want them falling and all drawn", count[1], count[4], count[3])
	}
}

func TestPickIsFixedBySeed(t *testing.T) {
	v := viewOf(make([]endpoint, 50))
	for seed := range uint64(10) {
		if diff := cmp.Diff(pickAll(v, 10, 0, seed), pickAll(v, 10, 0, seed)); diff != "" {
			t.Fatalf("the same seed picks differently:\n%s", diff)
		}
	}
}

// A session stays at its endpoint: across calls, when other endpoints come or leave, and as long as it pays.
func TestPickSession(t *testing.T) {
	session := func(name string, prompt int) *Call { return &Call{Facts: factsOf(prompt), Session: name} }
	homes := map[string]int32{}
	for i := range 200 {
		name := fmt.Sprint("session-", i)
		v := viewOf(make([]endpoint, 8))
		homes[name] = pickCall(v, session(name, 100), 0, uint64(i))[0].Endpoint
		for seed := range uint64(5) {
			if got := pickCall(v, session(name, 100), 0, seed)[0].Endpoint; got != homes[name] {
				t.Fatalf("%s goes to %d and to %d", name, homes[name], got)
			}
		}
	}
	count := map[int32]int{}
	for name, home := range homes {
		count[home]++
		fewer := viewOf(make([]endpoint, 8))
		fewer.Candidates = slices.DeleteFunc(fewer.Candidates, func(e int32) bool { return e == 3 })
		if got := pickCall(fewer, session(name, 100), 0, 1)[0].Endpoint; home != 3 && got != home {
			t.Fatalf("%s moves from %d to %d when endpoint 3 leaves", name, home, got)
		}
		endpoints := make([]endpoint, 8)
		endpoints[home] = endpoint{queue: 80_000, requests: 1} // 10 s
		if got := pickCall(viewOf(endpoints), session(name, 100), 0, 1)[0].Endpoint; got == home {
			t.Fatalf("%s stays at %d behind a queue of 10 s", name, home)
		}
		endpoints[home] = endpoint{failed: true}
		if got := pickCall(viewOf(endpoints), session(name, 100), 0, 1)[0].Endpoint; got == home {
			t.Fatalf("%s stays at %d, which failed", name, home)
		}
	}
	for e := range int32(8) {
		if count[e] < 10 || count[e] > 45 {
			t.Errorf("%d of 200 sessions at endpoint %d of 8", count[e], e)
		}
	}
}

// For any pool, a ranking holds candidates only, each once, as many as there can be, the healthy ones first. This also
// holds at one token a second, where a prompt costs more seconds than any bound could be worth.
func TestPickProperties(t *testing.T) {
	for name, tt := range map[string]struct {
		rate   float64
		tokens int
	}{
		"the default speed":     {tokens: 3000},
		"the slowest there are": {rate: slowest, tokens: 262_144},
	} {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(3, 4))
			for round := range 3000 {
				endpoints := make([]endpoint, 1+rnd.IntN(12))
				for i := range endpoints {
					endpoints[i] = endpoint{
						queue: rnd.IntN(50_000), requests: rnd.IntN(40), cached: int32(rnd.IntN(20)), rate: tt.rate,
						failed: rnd.IntN(4) == 0, out: rnd.IntN(3) == 0,
					}
				}
				v := viewOf(endpoints)
				checkRanking(t, endpoints, v, pickAll(v, rnd.IntN(tt.tokens), 0, uint64(round)))
			}
		})
	}
}

// checkRanking fails unless the ranking is of these endpoints' candidates, the healthy ones first.
func checkRanking(t *testing.T, endpoints []endpoint, v *view, got []Choice) {
	t.Helper()
	if want := min(Choices, len(v.Candidates)); len(got) != want {
		t.Fatalf("%d choices of %d candidates, want %d", len(got), len(v.Candidates), want)
	}
	healthy := 0
	for _, e := range v.Candidates {
		if !endpoints[e].failed {
			healthy++
		}
	}
	seen := map[int32]bool{}
	for i, c := range got {
		if endpoints[c.Endpoint].out || seen[c.Endpoint] {
			t.Fatalf("choice %d is endpoint %d: no candidate, or twice", i, c.Endpoint)
		}
		if endpoints[c.Endpoint].failed != (i >= healthy) {
			t.Fatalf("choice %d of a pool with %d healthy candidates is endpoint %d: %+v", i, healthy, c.Endpoint, endpoints[c.Endpoint])
		}
		seen[c.Endpoint] = true
	}
}

// One call over the bound outweighs any cost. A missing adapter slot outweighs that bound, and a failure both.
func TestPickClasses(t *testing.T) {
	v := viewOf(make([]endpoint, 5))
	v.settings.Spread = 1
	for i, adapter := range []string{"a", "b", "a", "b", "a"} {
		v.Observe(int32(i), 1, &Reading{At: 1, MaxAdapters: 1, RunningAdapters: []string{adapter}, Running: 1})
		if adapter == "b" {
			v.Reserve(int32(i), 1, callFor(adapter, 0), 0) // its slot is in use
		}
	}
	v.hot[0].own, v.hot[3].own = 1000, 1000 // over the bound
	failing := v.Reserve(2, 2, callFor("", 0), 0)
	v.Release(&failing, Failed, 2)
	v.hot[4].empty = 1e9 // the dearest, and beyond no bound
	reasons := v.Explain(v.of(callFor("a", 100)), 2)
	slices.SortStableFunc(reasons, Reason.Compare)
	var classes []string
	var order []int32
	for _, why := range reasons {
		order, classes = append(order, why.Endpoint), append(classes, why.Class)
	}
	if diff := cmp.Diff([]int32{4, 0, 1, 3, 2}, order); diff != "" {
		t.Errorf("order of the explanation (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"", ClassOverBound, ClassNoSlot, ClassNoSlot, ClassUnhealthy}, classes); diff != "" {
		t.Errorf("classes (-want +got):\n%s", diff)
	}
	var out [Choices]Choice
	v.Pick(v.of(callFor("a", 100)), 2, rand.New(rand.NewPCG(1, 1)), &out)
	if got := []int32{out[0].Endpoint, out[1].Endpoint, out[2].Endpoint}; !slices.Equal(got, order[:Choices]) {
		t.Errorf("picked %v, want %v", got, order[:Choices])
	}
}

// A cost that is not a number is the highest of its class.
func TestPickSurvivesCostsThatAreNoNumbers(t *testing.T) {
	for broken := range 5 {
		endpoints := make([]endpoint, 4)
		v := viewOf(endpoints)
		for e := range broken {
			v.hot[e%4].perToken = math.NaN()
		}
		for seed := range uint64(20) {
			got := pickAll(v, 100, 0, seed)
			checkRanking(t, endpoints, v, got)
			for i, c := range got[:min(len(got), 4-min(broken, 4))] {
				if int(c.Endpoint) < broken {
					t.Fatalf("with %d of 4 costs that are no numbers choice %d is endpoint %d, one of them", broken, i, c.Endpoint)
				}
			}
		}
	}
}

// What a token costs others depends on the candidates that take calls. An avoided endpoint takes none, so its empty
// queue does not count, unless all are avoided.
func TestOthersPayByTheQueuesThatMatter(t *testing.T) {
	const long = 160_000 // 20 s
	for name, tt := range map[string]struct {
		endpoints []endpoint
		want      float64
	}{
		"an idle candidate":         {endpoints: []endpoint{{}, {queue: long, requests: 1}}, want: leastOthers},
		"the idle one failed":       {endpoints: []endpoint{{failed: true}, {queue: long, requests: 1}}, want: mostOthers},
		"all failed, and one idles": {endpoints: []endpoint{{failed: true}, {queue: long, requests: 1, failed: true}}, want: leastOthers},
	} {
		t.Run(name, func(t *testing.T) {
			v := viewOf(tt.endpoints)
			for _, why := range v.Explain(v.of(callFor("", 1000)), 0) {
				if got := why.Others / why.Prefill; !near(got, tt.want) {
					t.Errorf("a token at endpoint %d costs others %v times its prefill, want %v", why.Endpoint, got, tt.want)
				}
			}
		})
	}
}

// The bound on calls in flight is a multiple of the mean over the candidates that take calls.
func TestBoundIsOfTheHealthy(t *testing.T) {
	v := viewOf([]endpoint{{failed: true}, {failed: true}, {failed: true}, {requests: 30}, {requests: 10}})
	for _, why := range v.Explain(v.of(callFor("", 0)), 0) {
		if why.Class == ClassOverBound {
			t.Errorf("endpoint %d with %d calls is over its share, where the healthy ones have 20 in the mean", why.Endpoint, why.InFlight)
		}
	}
}

// A fast endpoint may have calls in flight in proportion to its speed, a slow one as many as if all were alike.
func TestBoundFollowsSpeed(t *testing.T) {
	for name, tt := range map[string]struct {
		endpoints []endpoint
		want      []int // the endpoints over their bounds
	}{
		"alike":                {endpoints: []endpoint{{requests: 60}, {requests: 10}, {requests: 10}}, want: []int{0}},
		"the first is faster":  {endpoints: []endpoint{{requests: 60, rate: 80_000}, {requests: 10}, {requests: 10}}},
		"the second is slower": {endpoints: []endpoint{{requests: 40}, {requests: 70, rate: 800}, {requests: 10}}},
		"the slower has most":  {endpoints: []endpoint{{requests: 20}, {requests: 100, rate: 800}, {requests: 10}}, want: []int{1}},
	} {
		t.Run(name, func(t *testing.T) {
			v := viewOf(tt.endpoints)
			var over []int
			for _, why := range v.Explain(v.of(callFor("", 0)), 0) {
				if why.Class == ClassOverBound {
					over = append(over, int(why.Endpoint))
				}
			}
			if !slices.Equal(over, tt.want) {
				t.Errorf("over their bounds are %v, want %v", over, tt.want)
			}
		})
	}
}

// The terms of an explanation add up to the costs of the ranking, in the same order.
func TestExplainTellsWhatPickDoes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for round := range 1000 {
		endpoints := make([]endpoint, 1+rnd.IntN(6))
		for i := range endpoints {
			endpoints[i] = endpoint{
				queue: rnd.IntN(5000), requests: rnd.IntN(20), cached: int32(rnd.IntN(20)), failed: rnd.IntN(5) == 0,
			}
		}
		v := viewOf(endpoints)
		for i := range endpoints {
			v.Observe(int32(i), 1, &Reading{At: 1, MaxAdapters: 1, RunningAdapters: []string{fmt.Sprint(i % 3)}, Running: rnd.IntN(30),
				KVUsage: rnd.Float64(), KVTokens: 5000})
		}
		call := callFor(fmt.Sprint(rnd.IntN(5)), rnd.IntN(3000))
		call.Session = []string{"", "one"}[rnd.IntN(2)]
		v.Age(1, v.Candidates)
		reasons := v.Explain(v.of(call), 1)
		slices.SortStableFunc(reasons, Reason.Compare)
		for i, c := range pickCall(v, call, 1, uint64(round)) {
			why := reasons[slices.IndexFunc(reasons, func(r Reason) bool { return r.Endpoint == c.Endpoint })]
			if math.Abs(reasons[i].Cost-c.Cost) > 2*equal {
				t.Fatalf("choice %d costs %v, place %d of the explanation %v (%s)", i, c.Cost, i, reasons[i].Cost, reasons[i].Class)
			}
			sum := why.Wait + why.Prefill + why.Others + why.Batch + why.Memory + why.Adapter + why.Session
			if math.Abs(sum-why.Cost) > 1e-9 || why.CachedTokens != c.Cached || why.UncachedTokens != c.Uncached {
				t.Fatalf("the terms %+v do not make up the choice %+v", why, c)
			}
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			endpoints := make([]endpoint, n)
			for i := range endpoints {
				endpoints[i] = endpoint{queue: i % 7 * 100, requests: i % 5, cached: int32(i % 11)}
			}
			v := viewOf(endpoints)
			call := callFor("", 2000)
			rnd := rand.New(rand.NewPCG(1, 1))
			var out [Choices]Choice
			b.ReportAllocs()
			for b.Loop() {
				v.Pick(v.of(call), time.Millisecond, rnd, &out)
			}
		})
	}
}
