package selection

import (
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// recorded is a line of a record of real engines, as integration/engines/record writes it.
type recorded struct {
	At                float64
	Endpoint          int32
	Call, PromptBytes int
	Reading           *struct {
		Waiting, Deferred, Running, CapacityTokens, MaxLoRA int
		WaitingSplit                                        bool
		KVUsage, FirstTokenSeconds                          float64
		PromptTokens, CacheHits, FirstTokens                int64
	}
	Answer *struct {
		Call, PromptTokens, CachedTokens int
		FirstToken                       float64
		Error                            string
	}
}

func recordIn(t *testing.T, file string) []recorded {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	plain, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []recorded
	for lines := json.NewDecoder(plain); ; {
		var r recorded
		if err := lines.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b recorded) int { return cmp.Compare(a.At, b.At) })
	return out
}

// replay is a record that is given to a state of two endpoints, call by call and reading by reading.
type replay struct {
	state    *State
	cached   map[int]float64 // the share of each call's prompt that the engine found cached
	claims   map[int]*Claim
	expected map[int]float64
	told     FirstTokens // what Observe told of its estimates
}

func newReplay(record []recorded) *replay {
	p := &replay{
		state: stateWith(2, picksettings.Defaults()), cached: map[int]float64{}, claims: map[int]*Claim{}, expected: map[int]float64{},
	}
	for _, r := range record {
		if a := r.Answer; a != nil && a.PromptTokens > 0 {
			p.cached[a.Call] = float64(a.CachedTokens) / float64(a.PromptTokens)
		}
	}
	return p
}

func (p *replay) take(r recorded) {
	now := time.Duration(r.At * float64(time.Second))
	p.state.Age(now, numbers(2))
	switch {
	case r.Call > 0:
		call := Call{Facts: &request.Facts{PromptBytes: r.PromptBytes, Stream: true}}
		uncached := int(math.Round(float64(call.Facts.PromptTokens()) * (1 - p.cached[r.Call])))
		claim := p.state.Reserve(r.Endpoint, now, &call, max(1, uncached))
		p.claims[r.Call] = &claim
		p.expected[r.Call] = claim.place.due - claim.place.at
	case r.Answer != nil:
		p.state.Responded(p.claims[r.Answer.Call], Ended, now)
		p.state.Release(p.claims[r.Answer.Call], Ended, now)
	case r.Reading != nil:
		page := r.Reading
		first := p.state.Observe(r.Endpoint, now, &Reading{
			At: now, Running: page.Running, Waiting: page.Waiting, Deferred: page.Deferred, WaitingSplit: page.WaitingSplit,
			KVUsage: page.KVUsage, KVTokens: page.CapacityTokens, MaxAdapters: page.MaxLoRA,
			Counters: Counters{Prefilled: page.PromptTokens - page.CacheHits, FirstTokens: page.FirstTokens, FirstTokenSeconds: page.FirstTokenSeconds},
		})
		p.told.Calls += first.Calls
		p.told.Expected += first.Expected
		p.told.Observed += first.Observed
	}
}

// The expected times to first token are those of a real engine: by the median within 1.25 times, and nine of ten within
// twice, from half a minute of traffic on. The loads are shares of what the engines can do.
func TestEstimatesOfARealEngine(t *testing.T) {
	for _, load := range []string{"0.3", "0.8", "1.2"} {
		t.Run("load "+load, func(t *testing.T) {
			record := recordIn(t, "testdata/vllm-0.32.0/load-"+load+".jsonl.gz")
			p := newReplay(record)
			var off []float64
			calls := 0
			for _, r := range record {
				p.take(r)
				if a := r.Answer; a != nil && a.Error == "" {
					calls++
					if r.At > 30 {
						off = append(off, math.Exp(math.Abs(math.Log(p.expected[a.Call]/a.FirstToken))))
					}
				}
			}
			slices.Sort(off)
			median, p90 := off[len(off)/2], off[len(off)*9/10]
			t.Logf("%d calls: the median is off by %.2f times, the 90th percentile by %.2f; %.0f tokens a second and %.0f for a call",
				len(off), median, p90, p.state.Rate(0), p.state.curve.perCall)
			if median > 1.25 || p90 > 2 {
				t.Errorf("the median is off by %.2f times, the 90th percentile by %.2f, want 1.25 and 2 at most", median, p90)
			}
			if p.told.Calls < calls*8/10 || p.told.Calls > calls {
				t.Errorf("readings tell of the first tokens of %d of %d calls, want nearly all", p.told.Calls, calls)
			}
		})
	}
}
