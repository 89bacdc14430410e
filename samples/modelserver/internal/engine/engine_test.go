package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// testConfig has round speeds: 1,000 prompt tokens take 1 s, and one token of an
// answer takes 100 ms.
func testConfig() Config {
	return Config{
		Model: "base", BlockSize: 16, NumBlocks: 1024, MaxModelLen: 8192,
		MaxNumSeqs: 8, MaxBatchedTokens: 512,
		PrefillTokensPerSecond: 1000, DecodeTokensPerSecond: 10, AnswerTokens: 8,
		MaxLoRAs: 2, LoRALoadTime: 3 * time.Second, TimeScale: 1,
	}
}

// start runs an engine as long as a synctest bubble.
func start(t *testing.T, cfg Config) *Engine {
	e := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return e
}

// result is one finished request, with the times of its first and last tokens.
type result struct {
	Output
	text        string
	first, last time.Duration
}

func generate(t *testing.T, e *Engine, req Request) (r result) {
	t.Helper()
	began := time.Now()
	outputs, err := e.Generate(t.Context(), req)
	if err != nil {
		t.Errorf("Generate: %v", err)
		return r
	}
	for out, err := range outputs {
		if err != nil {
			t.Errorf("the answer broke off: %v", err)
			return r
		}
		if r.first == 0 {
			r.first = time.Since(began)
		}
		r.last = time.Since(began)
		r.text += out.Text
		r.Output = out
	}
	return r
}

// lastError runs a request and returns the error that refused or ended it.
func lastError(ctx context.Context, e *Engine, req Request) error {
	outputs, err := e.Generate(ctx, req)
	if err != nil {
		return err
	}
	for _, err = range outputs {
	}
	return err
}

// prompt returns a text of n tokens. Different names share no block.
func prompt(name string, tokens int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%-64s", name)), tokens/16+1)[:tokens*BytesPerToken]
}

func TestTiming(t *testing.T) {
	tests := map[string]struct {
		scale               float64
		tokens, answer      int
		wantFirst, wantLast time.Duration
	}{
		"one chunk":    {scale: 1, tokens: 500, answer: 11, wantFirst: 500 * time.Millisecond, wantLast: 1500 * time.Millisecond},
		"three chunks": {scale: 1, tokens: 1200, answer: 1, wantFirst: 1200 * time.Millisecond, wantLast: 1200 * time.Millisecond},
		"scaled":       {scale: 10, tokens: 500, answer: 11, wantFirst: 50 * time.Millisecond, wantLast: 150 * time.Millisecond},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig()
				cfg.TimeScale = tt.scale
				got := generate(t, start(t, cfg), Request{Prompt: prompt("a", tt.tokens), MaxTokens: tt.answer, IgnoreEOS: true})
				if got.first != tt.wantFirst || got.last != tt.wantLast {
					t.Errorf("first token at %v, last at %v, want %v and %v", got.first, got.last, tt.wantFirst, tt.wantLast)
				}
				if len(got.text) != tt.answer*BytesPerToken || got.AnswerTokens != tt.answer || got.Finish != FinishLength {
					t.Errorf("%d bytes, %+v", len(got.text), got.Output)
				}
			})
		})
	}
}

func TestPrefillIsSerialAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		var wg sync.WaitGroup
		firsts := make([]time.Duration, 3)
		for i := range firsts {
			wg.Go(func() {
				firsts[i] = generate(t, e, Request{Prompt: prompt(fmt.Sprint(i), 512), MaxTokens: 1}).first
			})
			synctest.Wait() // lets requests arrive in order
		}
		wg.Wait()
		want := []time.Duration{512 * time.Millisecond, 1024 * time.Millisecond, 1536 * time.Millisecond}
		if diff := cmp.Diff(want, firsts); diff != "" {
			t.Errorf("times to first token (-want +got):\n%s", diff)
		}
	})
}

func TestDecodeSlowsWithTheBatch(t *testing.T) {
	cfg := testConfig()
	alone, crowd := cfg.stepTime(0, 1), cfg.stepTime(0, 101)
	if alone != 100*time.Millisecond || crowd != 2*alone {
		t.Errorf("a step takes %v alone and %v for 101, want 100ms and twice that", alone, crowd)
	}
}

func TestSecondTurnFindsPromptAndAnswer(t *testing.T) {
	// 67 tokens and a bit: the answer begins in the middle of a token and a block.
	first := append(prompt("talk", 67), "xy"...)
	tests := map[string]struct {
		adapter, salt string
		wantCached    func(firstTurn int) int
	}{
		"same model":    {wantCached: func(n int) int { return n / 64 * 16 }},
		"other adapter": {adapter: "lora-a", wantCached: func(int) int { return 0 }},
		"other salt":    {salt: "tenant", wantCached: func(int) int { return 0 }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := start(t, testConfig())
				one := generate(t, e, Request{Prompt: first, MaxTokens: 50, IgnoreEOS: true})
				if one.CachedTokens != 0 || one.PromptTokens != 68 {
					t.Fatalf("turn 1: %+v", one.Output)
				}
				second := string(first) + one.text + strings.Repeat("next", 20)
				two := generate(t, e, Request{Adapter: tt.adapter, CacheSalt: tt.salt, Prompt: []byte(second), MaxTokens: 1})
				// The last answer token is never an input.
				want := tt.wantCached(len(first) + len(one.text) - BytesPerToken)
				if two.CachedTokens != want {
					t.Errorf("turn 2 found %d tokens of %d, want %d", two.CachedTokens, two.PromptTokens, want)
				}
				if got := e.Stats().Totals; got.CacheHits != want || got.CacheQueries != 68+two.PromptTokens {
					t.Errorf("totals %+v", got)
				}
			})
		})
	}
}

func TestRepeatedPromptComputesItsLastBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		req := Request{Prompt: prompt("same", 160), MaxTokens: 4, IgnoreEOS: true}
		cold, warm := generate(t, e, req), generate(t, e, req)
		if warm.CachedTokens != 144 || warm.first != 16*time.Millisecond {
			t.Errorf("warm: %d tokens found, first after %v; want 144 and 16ms", warm.CachedTokens, warm.first)
		}
		if warm.text != cold.text {
			t.Errorf("answers differ: %q and %q", cold.text, warm.text)
		}
	})
}

func TestAnswersEndByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		lengths := map[int]bool{}
		for i := range 30 {
			got := generate(t, e, Request{Prompt: prompt(fmt.Sprint(i), 8)})
			if got.Finish != FinishStop || !strings.HasSuffix(got.text, lastWord) || len(got.text) != 4*got.AnswerTokens {
				t.Errorf("%d: %q, %+v", i, got.text, got.Output)
			}
			if got.AnswerTokens < 4 || got.AnswerTokens > 12 {
				t.Errorf("%d tokens, want 4 to 12", got.AnswerTokens)
			}
			lengths[got.AnswerTokens] = true
		}
		if len(lengths) < 4 {
			t.Errorf("only lengths %v", lengths)
		}
	})
}

func TestQueue(t *testing.T) {
	tests := map[string]struct {
		edit        func(*Config)
		wantRunning int
	}{
		"bounded by sequences": {func(c *Config) { c.MaxNumSeqs = 3 }, 3},
		// Each of 160 prompt and 17 answer tokens holds ⌈176/16⌉ = 11 blocks.
		"bounded by blocks": {func(c *Config) { c.NumBlocks = 32 }, 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig()
				tt.edit(&cfg)
				e := start(t, cfg)
				var wg sync.WaitGroup
				for i := range 6 {
					wg.Go(func() {
						generate(t, e, Request{Prompt: prompt(fmt.Sprint(i), 160), MaxTokens: 17, IgnoreEOS: true})
					})
				}
				time.Sleep(time.Second)
				if got := e.Stats(); got.Running != tt.wantRunning || got.Waiting != 6-tt.wantRunning {
					t.Errorf("running %d, waiting %d, want %d running", got.Running, got.Waiting, tt.wantRunning)
				}
				wg.Wait()
				if got := e.Stats(); got.Running+got.Waiting+got.UsedBlocks != 0 {
					t.Errorf("left behind: %+v", got)
				}
			})
		})
	}
}

func TestLeavingFreesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxNumSeqs = 1
		e := start(t, cfg)
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, name := range []string{"running", "waiting"} {
			wg.Go(func() {
				err := lastError(ctx, e, Request{Adapter: "a", Prompt: prompt(name, 512), IgnoreEOS: true})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s ended with %v", name, err)
				}
			})
		}
		time.Sleep(10 * time.Second)
		if got := e.Stats(); got.Running != 1 || got.Waiting != 1 || got.UsedBlocks == 0 {
			t.Fatalf("before leaving: %+v", got)
		}
		leave()
		wg.Wait()
		if got := e.Stats(); got.Running+got.Waiting+got.UsedBlocks != 0 {
			t.Errorf("after leaving: %+v", got)
		}
		if got := generate(t, e, Request{Prompt: prompt("next", 16), MaxTokens: 1}); got.Finish != FinishLength {
			t.Errorf("the next request: %+v", got.Output)
		}
	})
}

// A second signal may come for tokens that the caller has already seen.
func TestEveryOutputHasSomethingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		outputs, err := e.Generate(t.Context(), Request{Prompt: prompt("x", 64), MaxTokens: 5, IgnoreEOS: true})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for out, err := range outputs {
			if n++; err != nil || len(out.Text) != BytesPerToken {
				t.Fatalf("output %d: %+v, %v", n, out, err)
			}
			for _, s := range e.running {
				s.signal()
			}
		}
		if n != 5 {
			t.Errorf("%d outputs, want 5", n)
		}
	})
}

// The results of a step for a request that left meanwhile are dropped.
func TestLeavingInTheMiddleOfAStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer leave()
		err := lastError(ctx, e, Request{Prompt: prompt("x", 100), MaxTokens: 1}) // takes 100 ms
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("ended with %v", err)
		}
		time.Sleep(time.Second)
		want := Stats{NumBlocks: 1024, Totals: Totals{CacheQueries: 100}}
		got := e.Stats()
		got.LoRAs = nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("state (-want +got):\n%s", diff)
		}
	})
}

func TestStepEnd(t *testing.T) {
	previous := time.Unix(1000, 0)
	tests := map[string]struct{ lag, want time.Duration }{
		"on time":           {0, 100 * time.Millisecond},
		"late, made up":     {time.Second, 100 * time.Millisecond},
		"too late for that": {3 * time.Second, 3100 * time.Millisecond},
	}
	for name, tt := range tests {
		if got := stepEnd(previous, previous.Add(tt.lag), 100*time.Millisecond).Sub(previous); got != tt.want {
			t.Errorf("%s: ends %v after the last, want %v", name, got, tt.want)
		}
	}
}

func TestBreakingOffTheLoopAborts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		outputs, err := e.Generate(t.Context(), Request{Prompt: prompt("x", 64), IgnoreEOS: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range outputs {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if got := e.Stats(); got.Running+got.UsedBlocks != 0 {
			t.Errorf("after break: %+v", got)
		}
	})
}

func TestLoRASlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig()) // 2 slots, 3 s to load
		one := func(adapter string) time.Duration {
			return generate(t, e, Request{Adapter: adapter, Prompt: prompt("p", 100), MaxTokens: 1}).first
		}
		absent, resident := 3*time.Second, time.Duration(0)
		for i, step := range []struct {
			adapter  string
			wantLoad time.Duration
		}{
			{"a", absent}, {"b", absent}, {"a", resident},
			{"c", absent}, // evicts b, which has been idle longer
			{"a", resident}, {"b", absent},
		} {
			got := one(step.adapter)
			// The time beside the load is the prefill, which finds 96 tokens in a repeat.
			if prefill := got - step.wantLoad; prefill <= 0 || prefill > 100*time.Millisecond {
				t.Errorf("step %d (%s): first token after %v, want a load of %v", i, step.adapter, got, step.wantLoad)
			}
		}
	})
}

func TestAdapterWaitsWhileAllSlotsAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxLoRAs = 1
		e := start(t, cfg)
		var wg sync.WaitGroup
		results := map[string]*result{"a": {}, "b": {}, "": {}}
		for _, adapter := range []string{"a", "b", ""} {
			wg.Go(func() {
				*results[adapter] = generate(t, e, Request{Adapter: adapter, Prompt: prompt("p", 100), MaxTokens: 41, IgnoreEOS: true})
			})
			synctest.Wait()
		}
		time.Sleep(5 * time.Second)
		stats := e.Stats()
		if got := stats.LoRAs[len(stats.LoRAs)-1]; got.Adapters != "a" || !got.At.Equal(time.Now()) {
			t.Errorf("adapters in use: %+v, want a alone", got)
		}
		if stats.Waiting != 1 || stats.Deferred != 1 {
			t.Errorf("%d requests wait, %d of them for their adapter, want 1 and 1", stats.Waiting, stats.Deferred)
		}
		wg.Wait()
		if got := results[""].first; got > time.Second {
			t.Errorf("the base model's request waited %v behind one that lacks its adapter", got)
		}
		if a, b := results["a"].last, results["b"].first; b < a+3*time.Second {
			t.Errorf("b started after %v, though a held the only slot until %v and a load takes 3s", b, a)
		}
	})
}

// A request that waits for a place in the batch is not deferred, and its adapter is in use from its first token on.
func TestWaitingForAPlaceIsNoDeferral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxNumSeqs, cfg.LoRALoadTime = 1, 0
		e := start(t, cfg)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				generate(t, e, Request{Adapter: "a", Prompt: prompt("p", 1000), MaxTokens: 41, IgnoreEOS: true})
			})
			synctest.Wait()
		}
		time.Sleep(time.Second / 2) // the prefill takes 1 s
		if stats := e.Stats(); stats.Waiting != 1 || stats.Deferred != 0 || stats.LoRAs[len(stats.LoRAs)-1].Adapters != "" {
			t.Errorf("before the first token: %+v, want one request waiting, none deferred, no adapter in use", stats)
		}
		wg.Wait()
	})
}

// A request's time is that in the queue, that of its prefill and that of its answer.
func TestTimeOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxNumSeqs = 1
		e := start(t, cfg)
		results := make([]result, 2)
		var wg sync.WaitGroup
		for i := range results {
			wg.Go(func() {
				results[i] = generate(t, e, Request{Prompt: prompt(fmt.Sprint(i), 1000), MaxTokens: 11, IgnoreEOS: true})
			})
			synctest.Wait()
		}
		wg.Wait()
		one, two := results[0], results[1]
		if got := one.Timing; got.Queue != 0 || got.Prefill != one.first || got.Decode != one.last-one.first {
			t.Errorf("the first request's time is %+v, with tokens at %v and %v", got, one.first, one.last)
		}
		if got := two.Timing; got.Queue < one.last || got.Queue+got.Prefill != two.first {
			t.Errorf("the second request's time is %+v, after a first that ended at %v", got, one.last)
		}
	})
}

func TestUnloadedAdapterIsLoadedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		req := Request{Adapter: "a", Prompt: prompt("p", 100), MaxTokens: 1}
		generate(t, e, req)
		e.UnloadAdapter("a")
		if got := generate(t, e, req).first; got < 3*time.Second {
			t.Errorf("first token after %v, want a load of 3s", got)
		}
	})
}

func TestLoRAHistoryIsBoundedAndNewestLast(t *testing.T) {
	var h loraHistory
	for i := range 40 {
		h.note(LoRASet{Adapters: fmt.Sprint(i % 20), At: time.Unix(int64(i), 0)})
	}
	if len(h.sets) != maxLoRASets || h.sets[len(h.sets)-1].Adapters != "19" {
		t.Errorf("%d sets, last %+v", len(h.sets), h.sets[len(h.sets)-1])
	}
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.NumBlocks, cfg.MaxLoRAs = 100, 0 // 1,600 tokens
		e := start(t, cfg)
		tests := map[string]struct {
			req  Request
			want error
		}{
			"prompt too long": {Request{Prompt: prompt("p", 1600)}, &ContextLengthError{ContextLength: 1600, Prompt: 1600}},
			"answer too long": {Request{Prompt: prompt("p", 1000), MaxTokens: 601}, &ContextLengthError{ContextLength: 1600, Prompt: 1000, MaxTokens: 601}},
			"no LoRA":         {Request{Adapter: "a", Prompt: prompt("p", 10)}, ErrNoLoRA},
			"just fits":       {Request{Prompt: prompt("p", 1000), MaxTokens: 600}, nil},
		}
		for name, tt := range tests {
			got := lastError(t.Context(), e, tt.req)
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("%s: %v, want %v", name, got, tt.want)
			}
		}
	})
}

func TestStopEndsWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(testConfig())
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		go e.Run(ctx)
		for range 2 { // the first while it runs, the second after
			err := lastError(t.Context(), e, Request{Prompt: prompt("p", 100), IgnoreEOS: true})
			if !errors.Is(err, ErrStopped) {
				t.Errorf("ended with %v, want ErrStopped", err)
			}
		}
	})
}

func TestResetPrefixCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, testConfig())
		req := Request{Prompt: prompt("p", 160), MaxTokens: 1}
		generate(t, e, req)
		if !e.ResetPrefixCache() {
			t.Fatal("refused while idle")
		}
		if got := generate(t, e, req).CachedTokens; got != 0 {
			t.Errorf("found %d tokens after the reset", got)
		}
	})
}
