package selection

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/inferencereq"
)

// endpoint describes one endpoint of a test's pool.
type endpoint struct {
	queue    float64 // tokens
	requests int
	cached   int32 // blocks
	rate     float64
	lastPick uint64
	out      bool // not a candidate
}

func viewOf(endpoints []endpoint) *View {
	v := &View{}
	for i, e := range endpoints {
		if e.rate == 0 {
			e.rate = DefaultRate
		}
		l := Load{Rate: e.rate, LastPick: e.lastPick}
		if e.queue > 0 {
			l.Add(0, e.queue)
		}
		l.Requests = e.requests
		v.Loads = append(v.Loads, l)
		v.Cached = append(v.Cached, e.cached)
		if !e.out {
			v.Candidates = append(v.Candidates, int32(i))
		}
	}
	return v
}

func factsOf(tokens int) *inferencereq.Facts {
	return &inferencereq.Facts{PromptBytes: tokens * 4}
}

func pickAll(v *View, tokens int, now time.Duration, seed uint64) []Choice {
	var out [Choices]Choice
	n := Pick(factsOf(tokens), v, now, rand.New(rand.NewPCG(seed, 0)), &out)
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
		"one cached block outweighs three calls": {
			endpoints: []endpoint{{}, {requests: 3, cached: 1}}, tokens: 100, want: []int32{1, 0}, wantLen: 2,
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
			endpoints: []endpoint{{queue: 1000, rate: 2000}, {queue: 2000, rate: 8000}}, tokens: 10, want: []int32{1, 0}, wantLen: 2,
		},
		"over twice the mean of calls, the cache does not count": {
			endpoints: []endpoint{{requests: 24, cached: 100}, {requests: 3}, {requests: 2}}, tokens: 6500,
			want: []int32{2, 1, 0}, wantLen: 3,
		},
		"in one batch, calls are no reason to leave the cache": {
			endpoints: []endpoint{{requests: 7, cached: 100}, {}, {}}, tokens: 6500, want: []int32{0}, wantLen: 3,
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
		"nothing cached":              {tokens: 1000, want: Choice{Uncached: 1000}},
		"a part cached":               {tokens: 1000, cached: 10, want: Choice{Cached: 640, Uncached: 360}},
		"all cached leaves one token": {tokens: 640, cached: 10, want: Choice{Cached: 639, Uncached: 1}},
		"no prompt":                   {want: Choice{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := pickAll(viewOf([]endpoint{{cached: tt.cached}}), tt.tokens, 0, 1)
			if diff := cmp.Diff([]Choice{tt.want}, got); diff != "" {
				t.Errorf("choice (-want +got):\n%s", diff)
			}
		})
	}
}

// Between equals, the one unpicked longer is taken of two drawn: over many lots each of the equals is drawn, and the
// one picked last of all never wins against another.
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
	if !(count[1] > count[4] && count[4] > count[3] && count[3] > 0) {
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

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			endpoints := make([]endpoint, n)
			for i := range endpoints {
				endpoints[i] = endpoint{queue: float64(i % 7 * 100), requests: i % 5, cached: int32(i % 11)}
			}
			v := viewOf(endpoints)
			facts := factsOf(2000)
			rnd := rand.New(rand.NewPCG(1, 1))
			var out [Choices]Choice
			b.ReportAllocs()
			for b.Loop() {
				Pick(facts, v, time.Millisecond, rnd, &out)
			}
		})
	}
}
