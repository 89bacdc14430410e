package server

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// even is a server with simple times: a step takes 1 ms, and 1 ms more for each 1,000 prompt tokens.
func even(blocks int) Config {
	return Config{
		Blocks: blocks, PrefillRate: 1e6, Step: time.Millisecond, DecodeCall: 100 * time.Microsecond,
		BatchTokens: 2000, BatchCalls: 128, AdapterSlots: 1, AdapterLoad: 50 * time.Millisecond,
	}
}

// call makes a call whose prompt is determined by its seed.
func call(seed uint64, prompt, output int) *workload.Call {
	c := &workload.Call{Prompt: prompt, Output: output}
	for i := range prompt / workload.BlockTokens {
		c.Blocks = append(c.Blocks, seed<<32|uint64(i))
	}
	return c
}

// serve submits calls at their times and runs the server until all have ended.
func serve(t *testing.T, s *Server, calls ...*workload.Call) map[int]Ended {
	t.Helper()
	done := map[int]Ended{}
	note := func(e Ended) {
		if _, twice := done[e.ID]; twice {
			t.Errorf("call %d ended twice", e.ID)
		}
		done[e.ID] = e
	}
	for id, c := range calls {
		if err := s.Fits(c); err != nil {
			t.Fatal(err)
		}
		s.Advance(c.At, note)
		s.Submit(c.At, id, c)
	}
	s.Advance(math.MaxInt64, note)
	if len(done) != len(calls) {
		t.Errorf("%d of %d calls ended", len(done), len(calls))
	}
	if s.Calls() != 0 || s.Backlog() != 0 || len(s.pending) != 0 || s.decoding != 0 || s.context != 0 {
		t.Errorf("an idle server has %d calls, a backlog of %v, %d pending blocks, %d decoding with %d tokens",
			s.Calls(), s.Backlog(), len(s.pending), s.decoding, s.context)
	}
	if got := s.cache.free(); got != s.config.Blocks {
		t.Errorf("an idle server has %d of %d blocks free", got, s.config.Blocks)
	}
	return done
}

func TestTimes(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]struct {
		slowness float64
		calls    []*workload.Call
		want     map[int]Ended
	}{
		"a prompt in one step, then a token a step": {
			calls: []*workload.Call{call(1, 1000, 3)},
			want:  map[int]Ended{0: {First: 2 * ms, Last: 2*ms + 2*1100*time.Microsecond, Resident: true}},
		},
		"a prompt in chunks": {
			calls: []*workload.Call{call(1, 5000, 1)},
			want:  map[int]Ended{0: {First: 3*ms + 3*ms + 2*ms, Last: 8 * ms, Resident: true}},
		},
		"first come, first served": {
			calls: []*workload.Call{call(1, 2000, 1), call(2, 2000, 1)},
			want: map[int]Ended{
				0: {First: 3 * ms, Last: 3 * ms, Resident: true},
				1: {ID: 1, First: 6 * ms, Last: 6 * ms, Resident: true},
			},
		},
		"three times slower": {
			slowness: 3,
			calls:    []*workload.Call{call(1, 1000, 1)},
			want:     map[int]Ended{0: {First: 6 * ms, Last: 6 * ms, Resident: true}},
		},
		"a prompt that is cached but for its last block": {
			calls: []*workload.Call{call(1, 1024, 1), at(time.Second, call(1, 1024, 1))},
			want: map[int]Ended{
				0: {First: 2024 * time.Microsecond, Last: 2024 * time.Microsecond, Resident: true},
				1: {ID: 1, First: time.Second + 1512*time.Microsecond, Last: time.Second + 1512*time.Microsecond, Cached: 512, Resident: true},
			},
		},
		"an adapter is loaded once": {
			calls: []*workload.Call{with("a", call(1, 1000, 1)), at(time.Second, with("a", call(2, 1000, 1)))},
			want: map[int]Ended{
				0: {First: 52 * ms, Last: 52 * ms},
				1: {ID: 1, First: time.Second + 2*ms, Last: time.Second + 2*ms, Resident: true},
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := New(even(100))
			if test.slowness > 0 {
				s.SetSlowness(test.slowness)
			}
			if diff := cmp.Diff(test.want, serve(t, s, test.calls...)); diff != "" {
				t.Errorf("calls ended otherwise (-want +got):\n%s", diff)
			}
		})
	}
}

func at(t time.Duration, c *workload.Call) *workload.Call { c.At = t; return c }

func with(adapter string, c *workload.Call) *workload.Call { c.Adapter = adapter; return c }

// A larger batch slows each of its calls, and raises the server's throughput.
func TestDecodingSlowsWithTheBatch(t *testing.T) {
	last := func(calls int) time.Duration {
		var all []*workload.Call
		for i := range calls {
			all = append(all, call(uint64(i), 10, 500))
		}
		end := time.Duration(0)
		for _, e := range serve(t, New(even(100)), all...) {
			end = max(end, e.Last)
		}
		return end
	}
	one, twenty := last(1), last(20)
	if twenty < 2*one || twenty > 4*one {
		t.Errorf("20 calls take %s where one takes %s, want 2 to 4 times as long", twenty, one)
	}
}

// With less memory than its calls need, a server preempts the last ones, and still serves all calls.
func TestPreemption(t *testing.T) {
	calls := []*workload.Call{call(1, 1000, 1500), call(2, 1000, 1500), call(3, 1000, 1500)}
	roomy, tight := serve(t, New(even(100)), calls...), serve(t, New(even(10)), calls...)
	if tight[0].Last >= roomy[0].Last {
		t.Errorf("the first call ended at %s in a batch that lost others, want before %s", tight[0].Last, roomy[0].Last)
	}
	if tight[2].Last <= roomy[2].Last {
		t.Errorf("the last call ended at %s in a tight memory, want after %s", tight[2].Last, roomy[2].Last)
	}
	if tight[2].First != roomy[2].First {
		t.Errorf("a call that was preempted while it decoded has its first token at %s, want %s", tight[2].First, roomy[2].First)
	}
}

func TestEveryCallEndsOnce(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 30 {
		s := New(even(20 + rnd.IntN(40)))
		var calls []*workload.Call
		now := time.Duration(0)
		for range 300 {
			c := call(uint64(rnd.IntN(20)), 1+rnd.IntN(6000), 1+rnd.IntN(1500))
			c.Adapter = []string{"", "a", "b"}[rnd.IntN(3)]
			now += time.Duration(rnd.Int64N(int64(20 * time.Millisecond)))
			c.At = now
			calls = append(calls, c)
		}
		for id, e := range serve(t, s, calls...) {
			if e.First <= calls[id].At || e.Last < e.First || e.Cached >= calls[id].Prompt {
				t.Fatalf("round %d: call %d of %+v ended as %+v", round, id, calls[id], e)
			}
		}
	}
}

func TestCachedSeesWhatWaits(t *testing.T) {
	s := New(even(100))
	s.Submit(0, 0, call(1, 4000, 10))
	s.Submit(0, 1, call(2, 4000, 10))
	if got, want := s.Cached(call(2, 3000, 1)), 2560; got != want {
		t.Errorf("Cached is %d for the prompt of a call that waits, want %d", got, want)
	}
	if got := s.Cached(call(3, 3000, 1)); got != 0 {
		t.Errorf("Cached is %d for a prompt that nobody sent, want 0", got)
	}
	if got, want := s.Backlog(), 8000.0-2000; got != want {
		t.Errorf("Backlog is %v after the first chunk, want %v", got, want)
	}
}

func TestMetrics(t *testing.T) {
	s := New(even(10))
	s.Submit(0, 0, with("a", call(1, 1024, 10)))
	s.Submit(0, 1, with("b", call(2, 1024, 10)))
	if diff := cmp.Diff(Metrics{CacheTokens: 5120, Slots: 1}, s.Metrics()); diff != "" {
		t.Errorf("Metrics before a step ends differ (-want +got):\n%s", diff)
	}
	s.Submit(1, 2, with("b", call(3, 1024, 10))) // comes during the step
	s.Advance(s.stepEnd, func(Ended) {})
	if m := s.Metrics(); m.Waiting != 1 || m.Running != 1 || m.KVUsage != 0.2 || m.FirstTokens != 1 {
		t.Errorf("Metrics at the end of the first step are %+v", m)
	}
	s.Advance(s.stepEnd, func(Ended) {})
	m := s.Metrics()
	if m.Waiting != 0 || m.Deferred != 2 || !slices.Equal(m.Adapters, []string{"a"}) || m.ComputedTokens != 1024 || m.Ended != 0 {
		t.Errorf("with two calls deferred: %+v", m)
	}
	var ended []Ended
	for len(ended) < 3 {
		s.Advance(s.stepEnd, func(e Ended) { ended = append(ended, e) })
	}
	m = s.Metrics()
	if m.Deferred != 0 || len(m.Adapters) != 0 || m.Ended != 3 || m.ComputedTokens != 3072 || m.Generated != 30 {
		t.Errorf("when all calls have ended: %+v", m)
	}
	if want := ended[0].First + ended[1].First + ended[2].First - 1; m.FirstTokens != 3 || m.FirstTokenTime != want {
		t.Errorf("%d first tokens took %v, want 3 and %v", m.FirstTokens, m.FirstTokenTime, want)
	}
}

func TestFits(t *testing.T) {
	tests := map[string]struct {
		call    *workload.Call
		wantErr bool
	}{
		"fits":                    {call: call(1, 4000, 1000)},
		"longer than the memory":  {call: call(1, 4000, 1200), wantErr: true},
		"nothing to prefill":      {call: call(1, 0, 10), wantErr: true},
		"nothing to generate":     {call: call(1, 10, 0), wantErr: true},
		"an adapter, and no slot": {call: with("a", call(1, 10, 10)), wantErr: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			config := even(10)
			config.AdapterSlots = 0
			if err := New(config).Fits(test.call); (err != nil) != test.wantErr {
				t.Errorf("Fits is %v, want an error: %v", err, test.wantErr)
			}
		})
	}
}

// A caller may leave while its call waits, while it is prefilled, and while it decodes. Others go on, and what was computed
// stays in the cache.
func TestLeave(t *testing.T) {
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		at         time.Duration
		began      bool
		wantCached int           // of the same prompt later
		wantNext   time.Duration // first token of the call behind
	}{
		"while it waits":        {at: 2 * ms, wantCached: 0, wantNext: 12 * ms},
		"while it is prefilled": {at: 10 * ms, wantCached: 1536, wantNext: 15 * ms},
		"while it decodes":      {at: 15*ms + ms/2, began: true, wantCached: 3584, wantNext: 20 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(even(100))
			ended := map[int]Ended{}
			note := func(e Ended) { ended[e.ID] = e }
			s.Submit(0, 0, call(1, 6000, 1)) // three steps of 3 ms
			s.Submit(0, 1, call(2, 4000, 100))
			s.Submit(0, 2, call(3, 2000, 1))
			s.Advance(test.at, note)
			e, began := s.Leave(test.at, 1)
			if began != test.began || (e.First > 0) != test.began || e.ID != 1 {
				t.Errorf("Leave is %+v, %v, want a first token: %v", e, began, test.began)
			}
			s.Advance(math.MaxInt64, note)
			if got := ended[2].First; got > test.wantNext {
				t.Errorf("the call behind it has its first token at %s, want at most %s", got, test.wantNext)
			}
			if _, twice := ended[1]; twice {
				t.Error("the call ended once more")
			}
			if got := s.Cached(call(2, 4000, 1)); got != test.wantCached {
				t.Errorf("%d tokens of its prompt are cached, want %d", got, test.wantCached)
			}
			if s.Calls() != 0 || s.Backlog() != 0 || len(s.pending) != 0 || s.decoding != 0 || s.context != 0 || s.cache.free() != 100 {
				t.Errorf("an idle server has %d calls, a backlog of %v, %d pending blocks, %d decoding with %d tokens, %d blocks free of 100",
					s.Calls(), s.Backlog(), len(s.pending), s.decoding, s.context, s.cache.free())
			}
			if _, began := s.Leave(time.Hour, 1); began {
				t.Error("a call left twice")
			}
		})
	}
}

// The whole blocks of an answer stay in the cache, and evict prompts.
func TestAnswersTakeRoom(t *testing.T) {
	s := New(even(10))
	for id, c := range []*workload.Call{call(1, 2048, 1), call(2, 512, 2600), call(3, 1100, 1)} {
		s.Submit(time.Duration(id)*time.Minute, id, c)
		s.Advance(time.Duration(id+1)*time.Minute, func(Ended) {})
	}
	if got := s.Cached(call(1, 2049, 1)); got >= 2048 {
		t.Errorf("%d tokens are still cached beside an answer of five blocks and two prompts in a cache of ten", got)
	}
}

// Attention makes a token the slower the more are before it, whether they are cached or not.
func TestAttention(t *testing.T) {
	c := even(100)
	c.Attention = 1000
	for name, tt := range map[string]struct{ tokens, computed, want int }{
		"nothing before": {tokens: 1000, want: 1500},
		"as much before": {tokens: 2000, computed: 1000, want: 2500},
		"the last token": {tokens: 1001, computed: 1000, want: 2},
		"nothing to do":  {tokens: 1000, computed: 1000, want: 0},
	} {
		if got := c.Work(tt.tokens, tt.computed); int(got+0.5) != tt.want {
			t.Errorf("%s: the work is %v tokens, want %d", name, got, tt.want)
		}
	}
	s := New(c)
	s.Submit(0, 1, call(1, 2000, 1)) // in one step
	if got, want := s.stepEnd, 5*time.Millisecond; got != want {
		t.Errorf("the prompt takes %s, want %s", got, want)
	}
}
