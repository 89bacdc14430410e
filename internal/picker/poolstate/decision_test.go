package poolstate

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Averages hold no counts from before a restart, or from long ago.
func TestObservedForgets(t *testing.T) {
	var o observed
	at := time.Unix(100, 0)
	take := func(seconds int, r modelmetrics.Reading) {
		r.At = at.Add(time.Duration(seconds) * time.Second)
		o.take(r, time.Duration(seconds)*time.Second)
	}
	take(0, modelmetrics.Reading{CacheQueries: 500, CacheHits: 500})
	if got := o.cachedShare(); !math.IsNaN(got) {
		t.Errorf("before anything was counted the share is %v", got)
	}
	take(1, modelmetrics.Reading{CacheQueries: 100, CacheHits: 100, Restarts: 1})
	take(2, modelmetrics.Reading{CacheQueries: 200, CacheHits: 150, Restarts: 1})
	take(1, modelmetrics.Reading{CacheQueries: 9000, Restarts: 1}) // older than the last
	if got := o.cachedShare(); got != 0.5 {
		t.Errorf("the share is %v, want 0.5", got)
	}
	take(1000, modelmetrics.Reading{CacheQueries: 200, CacheHits: 150, Restarts: 1})
	if got := o.cachedShare(); !math.IsNaN(got) {
		t.Errorf("long after the last call the share is %v", got)
	}
}

// The observed times to first token as multiples of the expected ones have a geometric mean over calls, and no reading
// spoils it.
func TestObservedToExpected(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for name, tt := range map[string]struct {
		seen []selection.FirstTokens
		want float64
	}{
		"never":              {nil, nan},
		"nothing followed":   {[]selection.FirstTokens{{}}, nan},
		"late":               {[]selection.FirstTokens{{Calls: 1, Expected: 0.5, Observed: 0.75}}, 1.5},
		"late and early":     {[]selection.FirstTokens{{Calls: 1, Expected: 1, Observed: 4}, {Calls: 1, Expected: 4, Observed: 1}}, 1},
		"by calls":           {[]selection.FirstTokens{{Calls: 3, Expected: 3, Observed: 6}, {Calls: 1, Expected: 4, Observed: 2}}, math.Sqrt2},
		"no time":            {[]selection.FirstTokens{{Calls: 1}}, nan},
		"no expected time":   {[]selection.FirstTokens{{Calls: 1, Observed: 1}}, nan},
		"no observed time":   {[]selection.FirstTokens{{Calls: 1, Expected: 1}}, nan},
		"negative times":     {[]selection.FirstTokens{{Calls: 1, Expected: -1, Observed: -1}}, nan},
		"an impossible time": {[]selection.FirstTokens{{Calls: 1, Expected: 1, Observed: inf}, {Calls: 1, Expected: inf, Observed: 1}}, nan},
		"no number":          {[]selection.FirstTokens{{Calls: 1, Expected: nan, Observed: 1}, {Calls: 1, Expected: 1, Observed: nan}}, nan},
		"an endless time":    {[]selection.FirstTokens{{Calls: 1, Expected: 1, Observed: math.MaxFloat64}}, mostTimes},
		"hardly a time":      {[]selection.FirstTokens{{Calls: 1, Expected: 1, Observed: math.SmallestNonzeroFloat64}}, 1.0 / mostTimes},
	} {
		t.Run(name, func(t *testing.T) {
			var o observed
			for _, first := range tt.seen {
				o.compare(first)
			}
			same := func(got, want float64) bool {
				return math.Abs(got-want) < 1e-9*want || math.IsNaN(got) && math.IsNaN(want)
			}
			if got := o.toExpected(); !same(got, tt.want) {
				t.Errorf("it is %v, want %v", got, tt.want)
			}
			if !math.IsNaN(tt.want) {
				return
			}
			o.compare(selection.FirstTokens{Calls: 1, Expected: 1, Observed: 2})
			if got := o.toExpected(); !same(got, 2) {
				t.Errorf("with one true call it is %v, want 2", got)
			}
		})
	}
}

// How true expected times were is known of each endpoint while its calls are followed, in the state and in rankings, and is
// forgotten in time.
func TestExpectedTimesAreCompared(t *testing.T) {
	const late, idle = "10.0.0.1:8000", "10.0.0.2:8000"
	p, clock := poolOf(t, numbered(2)...)
	var firstTokens int64 = 1
	sum := 1.0
	tell := func(running int) {
		for _, e := range numbered(2) {
			r := modelmetrics.Reading{At: time.Unix(100, 0).Add(clock.now), WaitingSplit: true, FirstTokens: 1, FirstTokenSeconds: 1}
			if e.Address == addressOf(late) {
				r.Running, r.FirstTokens, r.FirstTokenSeconds = running, firstTokens, sum
			}
			p.Observe(e.Address, r, 0)
		}
	}
	check := func(when string, want float64) {
		t.Helper()
		state, ranked := map[string]float64{}, map[string]float64{}
		for _, e := range p.Snapshot().Endpoints {
			state[e.Address] = e.ObservedToExpected
		}
		why, err := p.Rank(&Call{Facts: prompt(9, 10)})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range why.Ranking {
			ranked[r.Address] = r.ObservedToExpected
		}
		wanted := map[string]float64{late: want, idle: math.NaN()}
		for what, got := range map[string]map[string]float64{"state": state, "ranking": ranked} {
			if diff := cmp.Diff(wanted, got, cmpopts.EquateNaNs(), cmpopts.EquateApprox(0, 0.01)); diff != "" {
				t.Errorf("%s, in the %s (-want +got):\n%s", when, what, diff)
			}
		}
	}
	check("before all readings", math.NaN())
	for range 2 {
		clock.now += time.Second
		tell(0)
	}
	check("before all calls", math.NaN())
	clock.now += time.Second
	for call := range uint64(2) { // 8,000 tokens at the assumed 8,000 a second: expected after 1 s and 2 s
		pickAt(t, p, late, prompt(call+1, 125))
	}
	clock.now += 6 * time.Second
	firstTokens, sum = 3, 1+4.5
	tell(2)
	check("after late first tokens", 1.5)
	clock.now += 10 * time.Minute
	tell(2)
	check("long after", math.NaN())
}

// Some of the latest picks are kept, each with the chosen endpoint and the next best.
func TestRecentPicks(t *testing.T) {
	p, clock := poolOf(t, numbered(3)...)
	r, home := pick(t, p, prompt(1, 20))
	r.Release(Answered)
	clock.now = recentInterval / 2
	r, _ = pick(t, p, prompt(2, 20)) // too early to be kept
	r.Release(Answered)
	clock.now = recentInterval
	facts := prompt(1, 20)
	facts.Model = strings.Repeat("m", 10<<10)
	r, _ = pick(t, p, facts)
	r.Release(Answered)
	got := p.Snapshot().Picks
	if len(got) != 2 || got[0].At != recentInterval || got[1].At != 0 {
		t.Fatalf("kept are %+v, want the picks at %s and at 0", got, recentInterval)
	}
	for _, d := range got {
		ranked := slices.ContainsFunc(d.Ranking, func(r Ranked) bool { return r.Address == home })
		if d.Chosen != home || d.Candidates != 3 || d.PromptTokens != 1280 || len(d.Ranking) != 2 || !ranked || len(d.Model) > 100 {
			t.Errorf("kept is %+v, want %s of 3 and the next best", d, home)
		}
	}
	if cached := got[0].Ranking[0].CachedTokens; cached != 1279 {
		t.Errorf("%d tokens were cached for the second pick, want 1,279", cached)
	}
	for i := range 3 * recentPicks {
		clock.now = time.Duration(i+2) * recentInterval
		r, _ = pick(t, p, prompt(uint64(i), 1))
		r.Release(Answered)
	}
	if got := len(p.Snapshot().Picks); got != recentPicks {
		t.Errorf("%d picks are kept, want %d", got, recentPicks)
	}
}

// At the debug level each pick logs its reasons, with clipped model names; at other levels no reasons are computed.
func TestPickTellsItsReasons(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		var out bytes.Buffer
		f := New(Options{
			Metrics: telemetry.NewMetrics(prometheus.NewRegistry()),
			Log:     slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level})),
		})
		f.SetPool(pool.Pool{Name: llama}, numbered(5))
		facts := prompt(1, 10)
		facts.Model = strings.Repeat("m", 10<<10)
		_, first := pick(t, f.Pool(llama), facts)
		if level == slog.LevelInfo {
			why, err := f.Pool(llama).Pick(&Call{Facts: facts}, new(Reservation))
			if out.Len() > 0 || why != nil || err != nil {
				t.Errorf("at the info level a pick logs %s and tells %v, %v", out.String(), why, err)
			}
			continue
		}
		var line struct {
			Pool string
			Why  map[string]any
		}
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Pool != "models/llama" || line.Why["promptTokens"] != 640.0 || line.Why["candidates"] != 5.0 || out.Len() > 4000 {
			t.Errorf("a pick of %s logs %s", first, out.String())
		}
	}
}

// The cost of keeping recent picks: "none" keeps none, "usual" as many as a pool of 100,000 calls a second keeps.
func BenchmarkPickRecent(b *testing.B) {
	for name, step := range map[string]time.Duration{"none": 0, "usual": 10 * time.Microsecond} {
		b.Run(name, func(b *testing.B) {
			p, clock := poolOf(b, numbered(100)...)
			if step == 0 {
				p.recent.next = time.Hour
			}
			facts, subset := &request.Facts{PromptBytes: 4000}, &Subset{}
			var r Reservation
			for b.Loop() {
				clock.now += 10 * time.Microsecond
				if _, err := p.Pick(&Call{Facts: facts, Subset: *subset}, &r); err != nil {
					b.Fatal(err)
				}
				r.Release(Answered)
			}
		})
	}
}
